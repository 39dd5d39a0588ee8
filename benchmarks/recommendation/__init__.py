"""The paper's experiment on top of the library: arms, plans, result tables."""
