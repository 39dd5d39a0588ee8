"""cuDNN's attention, which is planned for each shape, is switched off and on again."""

import threading

import pytest
import torch
from torch.backends import cuda

from crs_fast.decode.lm.attention_kernels import attention_of_any_shape
from crs_fast.decode.lm.tree_model import TreeModel
from python_tests.helpers import tiny_model


def test_it_is_off_inside_and_back_on_when_the_last_thread_leaves():
    assert cuda.cudnn_sdp_enabled()
    first_left, both_inside = threading.Event(), threading.Barrier(2)
    seen = []

    def other():
        with attention_of_any_shape():
            both_inside.wait()
            first_left.wait()
            seen.append(cuda.cudnn_sdp_enabled())

    thread = threading.Thread(target=other)
    thread.start()
    with attention_of_any_shape(), attention_of_any_shape():
        both_inside.wait()
        assert not cuda.cudnn_sdp_enabled()
        assert cuda.flash_sdp_enabled()
    first_left.set()
    thread.join()
    assert seen == [False]
    assert cuda.cudnn_sdp_enabled()


def test_a_callers_own_choice_stays():
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with attention_of_any_shape():
            assert not cuda.flash_sdp_enabled()
        assert not cuda.cudnn_sdp_enabled()
    cudnn = torch.nn.attention.SDPBackend.CUDNN_ATTENTION
    with torch.nn.attention.sdpa_kernel(cudnn), attention_of_any_shape():
        assert cuda.cudnn_sdp_enabled()  # there is no other
    with pytest.raises(KeyError), attention_of_any_shape():
        raise KeyError
    assert cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(
    ("device", "one_shape", "kept"),
    [("cuda", False, False), ("cuda", True, True), ("cpu", False, True)],
)
def test_a_model_leaves_it_out_where_shapes_differ(device, one_shape, kept):
    lm = TreeModel(tiny_model("llama", 30), one_shape=one_shape)
    with lm._kernels(torch.device(device)):
        assert cuda.cudnn_sdp_enabled() is kept
