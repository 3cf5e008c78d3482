"""The policy server: a websocket for robots and simulators, a page for people, figures for monitoring; all on one port."""
