"""PV device backends: state machines over the public ring protocols."""
