"""Trainable additions to a graph, one kind a file: ``ADAPTER`` of the file ``lora`` is what ``lora`` inserts."""
