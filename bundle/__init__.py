"""What the configs name with ``_target_`` and MONAI lacks. Ships with every shared bundle; imports no data_gen."""
