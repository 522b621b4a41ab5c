"""Which of torch's operators can carry a number of one entry to others, so that it need not show in ordinary values."""

from __future__ import annotations

from collections.abc import Collection

from .row_reads import words

# each entry of these is computed from the entry at its place
ENTRYWISE = words(
    """relu tanh softplus silu gelu elu leaky_relu sigmoid hardtanh hardswish hardsigmoid mish _prelu_kernel threshold
    log_sigmoid_forward softshrink hardshrink celu selu rrelu_with_noise native_dropout
    add sub rsub mul div true_divide neg abs exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square pow reciprocal sin cos tan
    asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc erfinv lgamma digamma polygamma special_ndtr special_log_ndtr
    special_i0e special_i1e logit xlogy special_xlog1py logaddexp lerp addcmul addcdiv fmod remainder copysign
    _to_copy clone detach contiguous lift_fresh alias zero fill zeros_like ones_like empty_like full_like new_zeros new_ones
    new_empty new_full rand_like randn_like bernoulli_like logical_not logical_and logical_or bitwise_and bitwise_or isnan
    isfinite isinf nan_to_num polar view_as_real view_as_complex"""
)
# these of others, whatever their values: what they mix shows in the first draws, unless a step comes before
LINEAR = words(
    """mm addmm bmm baddbmm mv addmv dot convolution _convolution native_layer_norm native_group_norm native_batch_norm
    _native_batch_norm_legit_no_training _softmax _log_softmax logsumexp linear avg_pool2d _adaptive_avg_pool2d
    upsample_nearest2d upsample_bilinear2d _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention
    _scaled_dot_product_flash_attention _scaled_dot_product_attention_math linalg_vector_norm linalg_cholesky_ex
    linalg_solve_triangular triangular_solve cholesky _linalg_solve_ex
    view _unsafe_view reshape permute transpose t expand squeeze unsqueeze unflatten as_strided select slice split
    split_with_sizes unsafe_split unbind cat stack repeat movedim narrow diagonal diag_embed diagonal_copy tril triu
    constant_pad_nd flip roll im2col col2im pixel_shuffle copy select_scatter slice_scatter"""
)
# constant but for far values
STEPS = words(
    """gt ge lt le eq ne sign sgn floor ceil round trunc frac heaviside floor_divide clamp clamp_min clamp_max where masked_fill
    maximum minimum fmax fmin signbit"""
)


def may_mix(operators: Collection[str]) -> bool:
    """Return whether a program of these operators can mix entries in a way that its ordinary draws do not show.

    An operator that is on no list may.

    Example:
        >>> may_mix({"addmm", "relu"}), may_mix({"gt", "where"}), may_mix({"gt", "sum"}), may_mix({"gt", "addmm"})
        (False, False, True, True)
    """
    plain = {name.removesuffix("_") for name in operators}
    others = plain - ENTRYWISE - STEPS
    return bool(others - LINEAR) or bool(others and plain & STEPS)
