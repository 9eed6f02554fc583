"""How versions of any model are compared, decided about and kept."""
