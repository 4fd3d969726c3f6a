"""What the service says of itself: metrics and logs. Nothing here may identify a patient."""
