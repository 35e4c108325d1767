"""The engine's tiny models, of which several are served here."""

from tests.engine.conftest import _patient_decoding, anyio_backend, jpeg, mixed, store

__all__ = ["_patient_decoding", "anyio_backend", "jpeg", "mixed", "store"]
