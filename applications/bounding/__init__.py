"""BOLT: bounds on the Bayes error where it is known, the loss in training and as an outer loss."""
