"""What training climbs: bounds, their gradients, and numbers that change on the way."""
