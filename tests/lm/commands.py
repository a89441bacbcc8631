"""Options of `convlm train` that make a model small enough to train within a second."""

SMALL = ["--context=4", "--hidden=6", "--batch-size=4"]
