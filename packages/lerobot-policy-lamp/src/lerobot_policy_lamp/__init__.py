"""LaMP as a policy of LeRobot, which imports this package and thereby learns of `--policy.type=lamp`.

Where LeRobot is not installed, the parts that do not need it (`building`, `batches`) can be imported all the same.
"""

from importlib.util import find_spec

if find_spec("lerobot") is not None:
    from lerobot_policy_lamp.configuration_lamp import LampConfig as LampConfig
