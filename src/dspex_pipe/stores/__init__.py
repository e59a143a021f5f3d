"""Where the state of layers can live."""
