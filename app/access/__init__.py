"""Who may ask, how often, and what is written down about it. It knows no HTTP; `app/api/access.py` does."""
