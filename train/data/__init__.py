"""From shards to batches: the order, positioned reads, the index, the inputs of the network."""
