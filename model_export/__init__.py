"""Everything up to the exported model: data, network, training, export, verification. Never imports a web framework."""
