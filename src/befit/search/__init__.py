"""How to look: searchers over any space, their study, and where its trials run."""
