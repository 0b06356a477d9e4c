import pytest
from collector_kit import AsgiClient

from infi.ramen_server import Collector, Limits, MemoryStore, Settings, SqliteStore


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def settings(directory):
    with Settings(directory) as settings:
        yield settings


@pytest.fixture(params=["sqlite", "memory"])
def store(request, directory):
    store = SqliteStore(directory) if request.param == "sqlite" else MemoryStore()
    yield store
    store.close()


@pytest.fixture
def sqlite_store(directory):
    store = SqliteStore(directory)
    yield store
    store.close()


@pytest.fixture
def start(settings):
    """Make clients of collectors; all are stopped at the end."""
    clients = []

    def make(store=None, limits=None, **options):
        collector = Collector(store or MemoryStore(), settings, limits or Limits(), **options)
        token = settings.add_token(f"sender{len(clients)}")
        client = AsgiClient(collector, token).__enter__()
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.__exit__()
