"""Files that somebody made to do harm, and what becomes of them."""
