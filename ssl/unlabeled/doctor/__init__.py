"""`python -m unlabeled doctor`: looks at pictures, machine and recipe before the hours are spent."""
