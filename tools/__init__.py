"""Programs around the library; nothing imports them."""
