"""`fleet image render`: what a card needs for its board to join the fleet by itself."""
