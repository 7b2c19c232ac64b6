//! From logits to a token: an ordered table of logits processors, then a seeded draw.
