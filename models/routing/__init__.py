"""When an edge answer may be kept: labelled answers, a calibration, rules compared."""
