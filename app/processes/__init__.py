"""The service as several processes: fronts that speak HTTP, decode and encode, an engine with the model, a supervisor.

A process that ends before it is asked to ends all of them: a service that lacks a part would be slower or half deaf and
still look well. Whoever runs it starts it anew.
"""
