"""The tiny trained models: a CLIP pair and a detector for generated scenes, how they were made and measured."""
