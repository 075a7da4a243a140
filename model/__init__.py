"""EchoMimicV3: network, masks, audio windows, PhDA, encoders, codecs, sampler, guidance. No data, no Ray."""

import configs  # noqa: F401 - first of all, so that nothing imported later reports or looks anything up unasked
