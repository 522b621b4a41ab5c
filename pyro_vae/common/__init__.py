"""Ground floor: random streams, digests, atomic writes, bounded reads, device, memory, progress."""
