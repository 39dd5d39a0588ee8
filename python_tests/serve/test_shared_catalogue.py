"""One catalogue folder, several stores: they stand for the processes that share it."""

import threading

import pytest

from crs_fast.crs.data.dialogue import Item
from crs_fast.serve.shared_catalogue import SharedCatalogueStore

from .doubles import wait_until
from .test_catalogue import made


@pytest.fixture(scope="module")
def recommender():
    return made()


@pytest.fixture
def stores(recommender, tmp_path):
    """Two stores of one folder, of which the second follows the first."""
    both = [SharedCatalogueStore(recommender, tmp_path) for _ in range(2)]
    both[1].follow(0.02)
    yield both
    both[1].close()


def ids(store):
    return {item.item_id for item in store.current.recommender.bundle.items}


def film(number):
    return Item(f"n{number}", f"Film {90 + number}", 2020)


def test_a_change_reaches_the_others(stores):
    one, other = stores
    one.change(add=[film(1)], remove=["i2"])
    wait_until(lambda: other.current.version == "1")
    assert ids(other) == ids(one) == {"n1", *(f"i{n}" for n in range(8) if n != 2)}
    one.rollback("0")
    wait_until(lambda: other.current.version == "0")


def test_a_change_builds_on_what_others_made(recommender, tmp_path):
    """Neither store follows, so each knows its own changes only."""
    one, other = (SharedCatalogueStore(recommender, tmp_path) for _ in range(2))
    assert one.change(add=[film(1)]).version == "1"
    assert other.change(add=[film(2)]).version == "2"
    assert ids(other) >= {"n1", "n2"}
    assert one.change(remove=["n2"]).version == "3"
    assert one.rollback("3").version == "3"
    assert other.rollback("2").version == "2"  # current here already, and not in the folder
    assert one.refresh().version == "2"


def test_changes_at_the_same_time_are_all_kept(recommender, tmp_path):
    stores = [SharedCatalogueStore(recommender, tmp_path) for _ in range(4)]
    threads = [
        threading.Thread(target=store.change, kwargs={"add": [film(number)]})
        for number, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stores[0].refresh()
    assert ids(stores[0]) >= {"n0", "n1", "n2", "n3"}
    assert stores[0].current.version == "4"


def test_following_writes_nothing(recommender, tmp_path):
    """A store that is slow to read a version must not make it current again."""
    one, slow = (SharedCatalogueStore(recommender, tmp_path) for _ in range(2))
    one.change(add=[film(1)])
    read = slow._read

    def read_while_another_goes_on(version):
        catalogue = read(version)
        one.change(add=[film(2)])
        return catalogue

    slow._read = read_while_another_goes_on
    assert slow.refresh().version == "1"
    assert SharedCatalogueStore(recommender, tmp_path).current.version == "2"


def test_a_damaged_version_is_not_served_and_can_be_left(stores, caplog):
    one, other = stores
    one.change(add=[film(1)])
    wait_until(lambda: other.current.version == "1")
    read = other._read
    other._read = lambda version: read("damaged") if version == "2" else read(version)
    one.change(add=[film(2)])
    wait_until(lambda: "the catalogue stays at version 1" in caplog.text)
    assert other.current.version == "1"
    assert other.rollback("1").version == one.refresh().version == "1"


def test_without_a_folder_nothing_changes(recommender):
    store = SharedCatalogueStore(recommender)
    store.follow(1)
    with pytest.raises(ValueError, match=r"directory must be a folder .* \(got None\)"):
        store.change(remove=["i1"])
    with pytest.raises(ValueError, match=r"seconds must be above 0 \(got 0\)"):
        store.follow(0)
