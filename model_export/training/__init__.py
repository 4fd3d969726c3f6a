"""From images and masks to a checkpoint."""
