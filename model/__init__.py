"""EchoMimicV3: network, masks, audio windows, PhDA, encoders, codecs, sampler, guidance. No data, no Ray."""
