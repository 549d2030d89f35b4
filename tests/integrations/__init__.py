"""The modules of `hvsock.integrations`, each beside its library; `services` has what they serve and check."""
