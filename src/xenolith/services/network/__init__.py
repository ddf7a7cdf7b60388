"""What guests' networks are on the host: switches between guests, user-mode networking, taps, captures."""
