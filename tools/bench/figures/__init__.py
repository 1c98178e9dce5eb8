"""The figures of each method on real models, one file a family: what was asked, what came out."""
