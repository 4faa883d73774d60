"""Data attribution: methods that predict retrainings, and banks of retrainings that judge them."""
