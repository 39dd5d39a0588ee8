"""What the HTTP application is made of: schemas, routes, errors, limits, figures."""
