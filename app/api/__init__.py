"""HTTP: routes, schemas and problem documents. Thin; what happens is told in `app/segmentation`."""
