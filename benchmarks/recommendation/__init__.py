"""The paper's experiment on top of the library: methods, plans, result tables."""
