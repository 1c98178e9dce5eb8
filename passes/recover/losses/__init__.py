"""What training makes small, one loss a file: ``LOSS`` of the file ``kl`` is the loss that recipes call ``kl``."""
