"""Exports MobileCLIP pairs from open_clip to the model store; all but `cli` and `fp16` needs the extra `export`."""
