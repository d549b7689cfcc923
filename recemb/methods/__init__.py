"""Ways to store tables: what each computes and how it is trained."""
