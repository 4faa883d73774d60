"""What applications share: data, models, training, reports and the command line."""
