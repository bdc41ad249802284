"""Thin adapters to other libraries' registries. Each needs its library; nothing else imports them."""
