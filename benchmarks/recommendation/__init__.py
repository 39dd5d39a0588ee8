"""The paper's experiment on top of the library: its methods, how they run, and result tables."""
