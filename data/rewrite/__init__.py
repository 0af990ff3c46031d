"""Caption rewriting: LaCLIP's in-context completion (arXiv 2305.20088), with checks that make a weak writer safe."""
