"""From raw series in files to a training store: what is read from where, how, its statistics, and its climatology."""
