"""The report's style sheet: calm, readable, light and dark, wide and narrow; no external resource."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #23262b; --soft: #666b73; --faint: #9a9fa7; --line: #e6e3dd; --grid: #eeebe5;
  --wash: #f3f1ec; --good: #2c8a57; --bad: #b4483e; --link: #2f62c9;
  --c0: #2f6bdd; --c1: #db8226; --c2: #2c9a70; --c3: #9159c9; --c4: #c9506b; --c5: #4ba3c7; --c6: #8d8a3a; --c7: #8a8f98;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181c; --card: #1d2025; --ink: #e4e5e7; --soft: #a2a7af; --faint: #747a83; --line: #2e3238; --grid: #282c32;
    --wash: #22262b; --good: #5fc08c; --bad: #e08377; --link: #8cb0f5;
    --c0: #6c9dfa; --c1: #f0a557; --c2: #57c79a; --c3: #b98bea; --c4: #ea8299; --c5: #78c4e4; --c6: #bfbb68; --c7: #9aa0aa;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink); line-height: 1.6; font-size: 16px;
  font-family: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1040px; margin: 0 auto; padding: 56px 24px 96px; }
header { margin-bottom: 36px; }
h1 { font-size: 34px; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 8px; font-weight: 650; }
h2 { font-size: 21px; letter-spacing: -0.01em; margin: 64px 0 6px; font-weight: 620; scroll-margin-top: 16px; }
h3 { font-size: 15px; margin: 0 0 10px; font-weight: 600; }
p { margin: 0 0 14px; max-width: 72ch; }
p.lead { color: var(--soft); font-size: 17px; }
p.about, p.absent, figcaption, .small { color: var(--soft); font-size: 14.5px; }
p.about { max-width: 92ch; } p.absent { border-left: 3px solid var(--line); padding: 2px 0 2px 12px; }
p.found { background: var(--wash); border-radius: 8px; padding: 10px 14px; font-size: 14.5px; max-width: none; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 18px; font-size: 14.5px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; margin: 28px 0 0; }
.card, .panel, figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.card { padding: 16px 18px 14px; }
.card b { display: block; font-size: 29px; line-height: 1.25; font-weight: 640; letter-spacing: -0.02em; }
.card span { display: block; color: var(--soft); font-size: 13.5px; }
.card em { display: block; font-style: normal; color: var(--soft); font-size: 13.5px; margin-top: 2px; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 16px; margin: 16px 0; }
.panel { padding: 18px 18px 14px; margin: 16px 0; min-width: 0; } .panels .panel { margin: 0; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart.wide svg { max-width: 820px; }
.chart text { font-size: 11px; fill: var(--soft); font-family: inherit; }
.chart text.name { fill: var(--faint); } .chart text.row { fill: var(--ink); font-size: 13px; }
.chart text.said { fill: var(--soft); font-size: 12.5px; font-variant-numeric: tabular-nums; }
.chart .grid { stroke: var(--grid); stroke-width: 1; } .chart .axis { stroke: var(--line); stroke-width: 1; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.chart .raw { fill: none; stroke-width: 1; opacity: 0.22; }
.chart .hollow { fill: none; stroke-width: 1.5; stroke-dasharray: 3 2; }
.chart .whisker { stroke: var(--ink); stroke-width: 1.2; }
.chart .span { stroke-width: 7; stroke-linecap: round; opacity: 0.32; } .chart .ring { stroke: var(--card); stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; color: var(--soft); margin-top: 6px; }
.legend span { display: inline-flex; align-items: center; gap: 7px; }
i.dash { width: 16px; height: 3px; border-radius: 2px; } i.dot { width: 10px; height: 10px; border-radius: 50%; flex: none; }
i.dot.hollow { opacity: 0.35; }
.timebar { display: flex; gap: 2px; height: 22px; margin: 6px 0 16px; border-radius: 6px; overflow: hidden; }
.timebar i { min-width: 2px; }
ul.times { list-style: none; margin: 0; padding: 0; display: grid; gap: 3px 34px;
  grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); font-size: 14.5px; }
ul.times li { display: grid; grid-template-columns: 10px 1fr auto 3em; gap: 10px; align-items: center; }
ul.times b { font-weight: 500; } ul.times em { font-style: normal; color: var(--soft); text-align: right; }
ul.times b, ul.times em, td, .card b { font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: 4px 0 14px; }
table { border-collapse: collapse; font-size: 14px; min-width: 100%; }
th, td { padding: 7px 12px 7px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: 13px; } th:first-child, td:first-child { text-align: left; }
th.up, td.up { text-align: left; white-space: normal; } tr:last-child td { border-bottom: 0; } tr.best td { font-weight: 600; }
figure { margin: 0; padding: 10px; min-width: 0; } figure + figure { margin-top: 0; }
figure img, figure video { display: block; width: 100%; height: auto; border-radius: 7px; background: var(--wash); }
figcaption { padding: 9px 4px 2px; font-size: 13.5px; line-height: 1.45; }
.gallery { display: grid; gap: 14px; margin: 16px 0; grid-template-columns: repeat(auto-fill, minmax(min(290px, 100%), 1fr)); }
.gallery.broad { grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); }
.gallery.broad figure.full { grid-column: 1 / -1; }
.badge { display: inline-block; font-size: 12px; border-radius: 99px; padding: 0 9px; margin-right: 6px; border: 1px solid; }
.badge.good { color: var(--good); } .badge.bad { color: var(--bad); }
.ramp { display: inline-block; width: 120px; height: 8px; border-radius: 4px; vertical-align: middle; margin: 0 8px;
  background: linear-gradient(90deg, rgb(38,99,255), rgb(178,62,224), rgb(255,42,54)); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 22px; margin: 8px 0 14px; font-size: 14.5px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
details { border: 1px solid var(--line); border-radius: 10px; background: var(--card); margin: 10px 0; }
summary { cursor: pointer; padding: 10px 16px; font-size: 14.5px; }
pre { margin: 0; padding: 4px 16px 14px; font-size: 12.5px; line-height: 1.5; overflow-x: auto;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
ul.notes { padding-left: 20px; margin: 8px 0; max-width: 76ch; } ul.notes li { margin: 5px 0; }
footer { margin-top: 72px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--faint); font-size: 13px; }
@media (max-width: 620px) {
  main { padding: 32px 16px 64px; } h1 { font-size: 27px; } h2 { margin-top: 48px; }
  .cards { grid-template-columns: 1fr 1fr; gap: 10px; } .card { padding: 12px 14px; } .card b { font-size: 23px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; }
  th:first-child, td:first-child { white-space: normal; min-width: 9.5em; }
}
@media print { body { background: #fff; } main { max-width: none; padding: 0; } .card, .panel, figure { break-inside: avoid; } }
""" + "".join(
    f".s{i} {{ stroke: var(--c{i}); }} .f{i} {{ fill: var(--c{i}); }} .b{i} {{ background: var(--c{i}); }}\n"
    for i in range(8)
)
