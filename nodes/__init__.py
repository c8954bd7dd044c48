"""Who speaks: ems, models, the runtime, the command line."""
