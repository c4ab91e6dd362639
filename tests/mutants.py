# ruff: noqa: E501
"""Deliberate faults of the package, each with the test that sees it.

A tuple is (file, old text, new text, what it breaks, the test that kills it). The old text occurs
once in the file; ``tests/test_mutants.py`` puts the new text in its place in a copy and runs the
test there, which must fail within a minute. Tests of ``tests/wiring`` compare with plain loops.
"""

ACCOUNTS = "tests/nn/test_surgery.py::test_only_the_named_towers_are_on_inside_the_block_and_as_before_behind_it"
BOUNDS = "tests/wiring/test_bounds.py"
CODES = "tests/quant/test_primitives.py"
ENTROPY = "tests/quant/test_entropy.py"
EXPERTS = "tests/calibration/experts/test_statistics.py"
MICRO = (
    "tests/calibration/test_micro_batches.py::test_micro_batches_give_the_step_of_the_whole_batch"
)
MONITOR = "tests/callbacks/test_quantizer_monitor.py"
OBSERVERS = "tests/quant/test_observers.py"
PARTITION = "tests/quant/test_partition.py"
QPARAMS = "tests/quant/test_qparams.py"
QUANTIZER = "tests/nn/test_quantizer.py"
RANGES = "tests/wiring/test_ranges.py"
RESERVOIR = "tests/wiring/test_reservoir.py"
SHARING = "tests/nn/test_sharing.py"
SOFT = "tests/quant/test_soft_assignment.py"
STRAIGHT = "tests/quant/test_straight_through.py"
STREAMED = "tests/calibration/test_stream.py"
TERM = "tests/test_losses.py"
_TEXT = "tests/metrics/test_fidelity.py"
_READ = "tests/evaluation/test_fidelity.py"
READ = f"{_READ}::test_everything_is_that_of_plain_loops[llava]"
_TABLE = "tests/commands/test_table_fidelity.py"
WEIGHTS = "tests/quant/test_weights.py"

_SEARCH = "tests/wiring/test_search.py"
SEQUENTIAL = f"{_SEARCH}::test_sequential_search_is_that_of_plain_loops"
MODES = f"{_SEARCH}::test_sequential_search_in_every_mode_is_that_of_plain_loops"
PER_LAYER = f"{_SEARCH}::test_sequential_search_per_layer_is_that_of_plain_loops"
JOINT = f"{_SEARCH}::test_joint_search_is_that_of_plain_loops"
MINMAX = f"{_SEARCH}::test_minmax_reports_the_error_of_the_quantized_chain"

_DEPENDENCY = "tests/wiring/test_dependency.py"
EDGES = f"{_DEPENDENCY}::test_dependency_is_that_of_plain_loops"
KINDS = f"{_DEPENDENCY}::test_image_and_text_tokens_apart_are_those_of_plain_loops"
PROXIES = f"{_DEPENDENCY}::test_entropy_and_mutual_information_are_those_of_plain_loops"
BEHIND = f"{_DEPENDENCY}::test_a9_a_searched_tower_is_quantized_the_measured_one_is_not"
PAIR = f"{_DEPENDENCY}::test_quantization_error_is_that_of_a_pair_behind_an_exact_prefix"
DED = f"{_DEPENDENCY}::test_discretisation_error_difference_is_that_of_plain_loops"

_LOSS = "tests/wiring/test_loss.py"
JACOBIAN = f"{_LOSS}::test_jacobian_weights_are_those_of_plain_loops"
TERMS = f"{_LOSS}::test_terms_are_those_of_plain_loops"
GRADIENTS = f"{_LOSS}::test_gradients_of_all_that_is_learned_are_those_of_autograd"

_SCHEDULE = "tests/wiring/test_schedule.py"
DUE = f"{_SCHEDULE}::test_partition_and_search_take_place_every_n_epochs_and_at_the_end"
RATE = f"{_SCHEDULE}::test_every_step_has_the_rate_of_the_cosine_and_every_epoch_its_own_jacobian"
STEP = f"{_SCHEDULE}::test_a_step_takes_the_batch_of_its_number_and_triples_of_its_own"
DRAW = f"{_SCHEDULE}::test_the_draw_of_the_triples_is_that_of_seed_and_step"
CLIPPED = f"{_SCHEDULE}::test_gradients_are_clipped_together"
OPTIONS = f"{_SCHEDULE}::test_options_of_the_partition_reach_every_pass"
RESUME = f"{_SCHEDULE}::test_resume_points_are_every_n_steps"

# fmt: off
_PRIMITIVES = "qvlm_lightning/quant/primitives.py"
_WEIGHTS = "qvlm_lightning/quant/weights.py"
_OBSERVERS = "qvlm_lightning/quant/observers.py"
_QPARAMS = "qvlm_lightning/quant/qparams.py"
_ENTROPY = "qvlm_lightning/quant/entropy.py"
_PARTITION = "qvlm_lightning/quant/partition.py"
QUANT = [
    (_PRIMITIVES, "return x + (x.round() - x).detach()", "return x.round()", "rounding stops the gradient", STRAIGHT),
    (_PRIMITIVES, "share.add_(torch.gt(x, top, out=clipped)).mul_(grad)", "share.mul_(grad)", "a bound gets no gradient from what it clips", BOUNDS),
    (_PRIMITIVES, "to_low = torch.sub(grad, grad_x, out=share).sum_to_size(low.shape) - to_high", "to_low = -to_high", "the lower bound gets no gradient from what it clips", BOUNDS),
    (_PRIMITIVES, "share.sub_(clipped.div_(scale)).mul_(inside).div_(2**ctx.num_bits - 1)", "share.zero_()", "bounds get no gradient of the rounding error", BOUNDS),
    (_PRIMITIVES, "return inside.mul_(grad).to(dtype), None, None, None", "return grad.to(dtype), None, None, None", "clipped values get a gradient in front of frozen bounds", STRAIGHT),
    (_PRIMITIVES, "return grad_x.to(dtype), to_low", "return grad.to(dtype), to_low", "clipped values get a gradient in front of learned bounds", BOUNDS),
    (_PRIMITIVES, "slope.sub_(clipped.div_(scale).mul_(inside)).div_", "slope.mul_(1 - inside).div_", "a clip ratio of tokens gets no gradient of the rounding error", BOUNDS),
    (_WEIGHTS, "return low * clip_ratio_O1[..., None], high * clip_ratio_O1[..., None]", "return low * clip_ratio_O1[..., None].detach(), high * clip_ratio_O1[..., None].detach()", "weight clips get no gradient", GRADIENTS),
    (_WEIGHTS, "grouped_OGI.amin(dim=-1, keepdim=True), grouped_OGI", "grouped_OGI.amin(dim=0, keepdim=True).amin(dim=-1, keepdim=True).expand_as(grouped_OGI[..., :1]), grouped_OGI", "output channels share a lower bound", WEIGHTS),
    (_PRIMITIVES, "return -zero_point, 2**num_bits - 1 - zero_point", "return -zero_point, 2**num_bits - zero_point", "one code too many", CODES),
    (_QPARAMS, "low.to(dtype).clamp_max(0), high.to(dtype).clamp_min(0)", "low.to(dtype), high.to(dtype)", "ranges need not contain 0", f"{CODES}::test_q8_constant_channel"),
    (_QPARAMS, "(high - low) / (levels - 1), floor", "(high - low) / levels, floor", "the scale divides by M", QPARAMS),
    (_QPARAMS, "absmax.to(dtype) / ((2**num_bits - 1) / 2)", "absmax.to(dtype) / (2 ** (num_bits - 1) - 1)", "the symmetric scale is another format's", CODES),
    (_QPARAMS, "return scale.clamp(least, kind.max).to(model_type).to(scale.dtype)", "return scale", "codes are computed with a scale that nobody stores", QPARAMS),
    (_OBSERVERS, 'Random(f"{self.seed}/{index}")', 'Random(f"{self.seed}")', "same reservoir rows for all samples", RESERVOIR),
    (_OBSERVERS, "rows = torch.randperm(length, generator=generator)[:share]", "rows = torch.arange(length)[:share]", "the reservoir keeps the first tokens", RESERVOIR),
    (_OBSERVERS, "x_TD = x_TD[kept]", "x_TD = x_TD + 0", "ranges count masked tokens", OBSERVERS),
    (_OBSERVERS, "place = (1 - percentile) * last", "place = (1 - percentile) * last / 2", "p is the share of both tails together", OBSERVERS),
    (_OBSERVERS, "self._kept[index] = self._choose(x_TD, index)", "self._kept[0] = self._choose(x_TD, index)", "percentiles are those of one sample", SEQUENTIAL),
    (_OBSERVERS, "new._kept[index] = rows if known is None else torch.cat([known, rows])", "new._kept[index] = rows", "an expert's pooled range is that of one expert", f"{OBSERVERS}::test_experts_pooled_have_the_range_of_all_their_tokens"),
    (_ENTROPY, "entropy(joint) - entropy(joint.sum(dim=1))", "entropy(joint) - entropy(joint.sum(dim=0))", "entropy of this layer given the next", ENTROPY),
    (_ENTROPY, "codes_a.long() * levels + codes_b.long()", "codes_b.long() * levels + codes_a.long()", "layers of a joint distribution are swapped", ENTROPY),
    (_ENTROPY, "u.clamp(0, levels - 1)[..., None]", "u[..., None]", "soft levels of clipped values are not those of the last code", SOFT),
    (_ENTROPY, "torch.softmax(-distance * step, dim=-1)", "torch.softmax(-distance / step, dim=-1)", "the printed temperature has another unit", TERMS),
    (_ENTROPY, "scale.dtype)) / scale + zero_point", "scale.dtype)) / scale", "codes of the dependency lose the negative half", EDGES),
    (_ENTROPY, "float(sum(edges[first:last]))", "float(sum(edges[first : last + 1]))", "the edge behind a block counts", PARTITION),
    (_PARTITION, "if _exceeds(edges[first:end], threshold):\n                last = end", "if not _exceeds(edges[first:end], threshold):\n                break\n            last = end", "a block ends at the first edge that fails", PARTITION),
    (_PARTITION, "return total - len(edges) * threshold > _noise(total)", "return total - len(edges) * threshold > -_noise(total)", "constant dependency merges", PARTITION),
    (_PARTITION, "inside += gain[end - 1]", "inside = gain[end - 1]", "dp counts the last edge of a block only", PARTITION),
]

_LOSSES = "qvlm_lightning/losses.py"
LOSSES = [
    (_LOSSES, "labels = labels_BT[:, 1:]", "labels = labels_BT[:, :-1]", "a token predicts itself", TERMS),
    (_LOSSES, "x_q, x_fp = x_q[mask_BT.bool()], x_fp[mask_BT.bool()]", "x_q, x_fp = x_q + 0, x_fp + 0", "the discretisation error counts padding", TERMS),
    (_LOSSES, "return numerator / (denominator.detach() + TINY)", "return numerator / denominator.numel()", "the discretisation error is not relative", TERMS),
    (_LOSSES, "total = total + weight * conditional_entropy(joint)", "total = total - weight * conditional_entropy(joint)", "the entropy loss has the printed sign", TERMS),
    (_LOSSES, "return means * (len(means) / total)", "return torch.ones_like(means)", "Jacobian weights are all 1", JACOBIAN),
    (_LOSSES, "means = (sums_K / counts_K.clamp_min(1)).detach()", "means = sums_K.detach()", "Jacobian weights grow with the number of samples a unit sees", JACOBIAN),
    (_LOSSES, ".flatten(1).norm(dim=1).sum()", ".norm()", "one gradient norm of all samples together", JACOBIAN),
    (_LOSSES, "    if normalized:", "    if not normalized:", "J compares plain outputs where normalized ones are asked for", f"{TERM}::test_the_normalized_error_does_not_see_the_length_of_a_token"),
    (_LOSSES, "kept = weight_BT != 0", "kept = weight_BT >= 0", "J counts padding", JOINT),
]

_QUANTIZER = "qvlm_lightning/nn/quantizer.py"
_LINEAR = "qvlm_lightning/nn/linear.py"
_BLOCK = "qvlm_lightning/methods/block.py"
_REPLAY = "qvlm_lightning/nn/replay.py"
_CHAINS = "qvlm_lightning/methods/site_chains.py"
NN = [
    (_QUANTIZER, "self.low * self.low_ratio, self.high * self.high_ratio", "self.low * self.low_ratio.detach(), self.high * self.high_ratio.detach()", "learned ratios get no gradient", BOUNDS),
    (_QUANTIZER, "self.high_ratio.fill_(1.0)", "self.high_ratio.mul_(1.0)", "a new range is multiplied by what was learned on the old one", QUANTIZER),
    (_QUANTIZER, "return (*own, self.num_bits, torch", "return (self.num_bits, torch", "a shared input is not quantized again on another range", SHARING),
    (_QUANTIZER, "torch.is_grad_enabled(), id(x)", "id(x)", "a shared input without a gradient is used where one is needed", SHARING),
    (_QUANTIZER, ".abs().amax(dim=-1, keepdim=True)", ".abs().amax()", "all tokens share one absmax", MODES),
    (_QUANTIZER, "x if self.learns_scale else x.detach()", "x", "a token's absmax gets a gradient", BOUNDS),
    (_QUANTIZER, "stacked = x.reshape(count, x.shape[0] // count, *x.shape[1:])", "stacked = x.reshape(x.shape[0] // count, count, *x.shape[1:]).transpose(0, 1)", "stacked candidates take each other's ranges", QUANTIZER),
    (_LINEAR, "key = version_key(*decided)", "key = version_key(self.weight)", "a learned weight clip is not seen without gradients", SHARING),
    (_LINEAR, "if torch.is_grad_enabled() and any(x.requires_grad for x in decided):", "if not decided:", "the kept weight is used where a gradient is needed", GRADIENTS),
    (_LINEAR, "output = F.linear(self.site(x), self.quantized_weight(), self.bias)", "output = F.linear(self.site(x), self.weight, self.bias)", "weights are never quantized", SEQUENTIAL),
    (_BLOCK, "return weights(call.kind, call.mask if mask is None else mask)", "return None", "the objective of a block counts padding", JOINT),
    (_BLOCK, "normalized = self.objective == \"normalized\"", "normalized = False", "the objective of a block is always the plain error", JOINT),
    (_REPLAY, "modules += [linear for site in unit.sites for linear in site.linears.values()]", "modules += []", "targets come from quantized weights", JOINT),
    (_CHAINS, "owner, h, call, block.tables[unit], choice[None], block.given.tensors", "owner, h, call, block.tables[unit], 0 * choice[None], block.given.tensors", "a site is searched behind sites of its layer at min-max", SEQUENTIAL),
    (_BLOCK, "return total[:, 0] / total[:, 1].clamp_min(TINY)", "return (all_sum(errors)[..., 0] / all_sum(errors)[..., 1].clamp_min(1)).mean(dim=0)", "J is a mean over batches", JOINT),
    ("qvlm_lightning/nn/replay.py", "return value.repeat(*[1] * axis, copies, *[1] * (value.dim() - axis - 1))", "return value.repeat_interleave(copies, dim=axis)", "stacked candidates take the masks of other samples", JOINT),
    ("qvlm_lightning/nn/replay.py", "added.append(own.hidden if found and bool(own.hidden.any()) else None)", "added.append(None)", "what the model adds between layers is lost", "tests/nn/test_replay.py"),
    ("qvlm_lightning/nn/structure.py", "self.enable(False)\n        self.enable(True, towers)", "self.enable(True, towers)", "towers that were on stay on", ACCOUNTS),
    ("qvlm_lightning/nn/structure.py", "self.enable(on, {name})", "self.enable(True, {name})", "quantizers are left on", "tests/calibration/test_partition.py::test_every_proxy_is_finite_and_leaves_the_quantizers_as_they_were"),
    ("qvlm_lightning/nn/surgery.py", "ActivationQuantizer(widths.activation_bits, mode", "ActivationQuantizer(widths.weight_bits, mode", "activations have the width of the weights", "tests/nn/test_left_alone.py"),
    ("qvlm_lightning/nn/routing.py", "real_BS = real_BS & mask_BT.to", "real_BS = real_BS | mask_BT.to", "an expert's statistics count padding", EXPERTS),
]

_PERCENTILE = "qvlm_lightning/methods/percentile.py"
_TREE = "qvlm_lightning/methods/prefix_tree.py"
_PROXIES = "qvlm_lightning/methods/proxies.py"
METHODS = [
    (_PERCENTILE, "linear(x_fp[batch].hidden, linear.weight, linear.bias)", "linear(x_fp[batch].hidden, linear.quantized_weight(), linear.bias)", "a site is scored against a quantized target", SEQUENTIAL),
    (_PERCENTILE, "hidden, size = x_q[batch].hidden, x_q[batch].hidden.shape[0]", "hidden, size = x_fp[batch].hidden, x_q[batch].hidden.shape[0]", "a site is scored on its full-precision input", SEQUENTIAL),
    (_PERCENTILE, "terms = output_error_terms(part, target, weight, normalized)", "terms = output_error_terms(part, target, None, normalized)", "a site is scored over padding", SEQUENTIAL),
    (_PERCENTILE, "output, targets[batch], block.weight(batch), normalized", "output, targets[batch], None, normalized", "a layer is scored over padding", PER_LAYER),
    (_PERCENTILE, "quantized = block.advance(quantized, unit, choice[columns])", "quantized = targets", "a block's next layer is searched behind the full-precision one", SEQUENTIAL),
    (_PERCENTILE, "            exact = targets\n", "            exact = quantized\n", "targets inside a block come from the quantized layer before", PER_LAYER),
    (_PERCENTILE, "tied[0] if choices is None", "tied[-1] if choices is None", "ties go to the smaller percentile", "tests/calibration/test_search.py::test_s12_ties_go_to_the_larger_percentile"),
    (_PERCENTILE, "        while changed:\n", "        for _ in range(1):\n", "coordinate descent stops after one sweep", JOINT),
    (_PERCENTILE, "hidden = block.advance(hidden, current, choice[block.columns(current)])", "hidden = block.advance(hidden, current, 0 * choice[block.columns(current)])", "coordinate descent runs behind layers at min-max", JOINT),
    ("qvlm_lightning/methods/grid.py", "count = int(round((high - low) / step, 9)) + 1", "count = int(round((high - low) / step, 9))", "the grid ends before its last percentile", f"{_SEARCH}::test_the_grid_of_the_paper"),
    ("qvlm_lightning/calibration/block_search.py", "block.objective, block.token_weights = method.objective, method.token_weights", "block.token_weights = method.token_weights", "the objective of a method does not reach its blocks", SEQUENTIAL),
    (_TREE, "grow_all(batch, level + 1, output, place", "grow_all(batch, level + 1, hidden, place", "a tree's layers all read the block's input", JOINT),
    (_TREE, "place = index * sizes[level] + first", "place = index + first * sizes[level]", "errors of a tree stand beside other choices", JOINT),
    (_TREE, "options[level][first : first + at_once]", "options[level][first:]", "all combinations of a unit are stacked at once", "tests/calibration/test_search.py::test_no_more_candidates_are_stacked_than_there_are_percentiles"),
    (_TREE, "first=place)", "first=index)", "errors of a tree's later candidates overwrite the first", "tests/calibration/test_search.py::test_no_more_candidates_are_stacked_than_there_are_percentiles"),
    (_PROXIES, "entropy(joint.sum(dim=0))", "entropy(joint.sum(dim=1))", "entropy is that of this layer, not of the next", PROXIES),
    (_PROXIES, "block.candidate_errors(minmax)[0] / power", "block.candidate_errors(minmax)[0]", "quantization error is not relative", PAIR),
    (_PROXIES, 'values.append(objective["sequential"] - objective["joint"])', 'values.append(objective["minmax"] - objective["joint"])', "DED compares with min-max", DED),
]

_CALIBRATOR = "qvlm_lightning/calibration/calibrator.py"
_SEARCHED = "qvlm_lightning/calibration/block_search.py"
_COUNTS = "qvlm_lightning/calibration/dependency.py"
_STATISTICS = "qvlm_lightning/calibration/statistics.py"
_MODULE = "qvlm_lightning/calibration/module.py"
_ENCODER = "qvlm_lightning/calibration/visual_encoder.py"
CALIBRATION = [
    (_SEARCHED, "hidden = [call.hidden for call in exact]", "hidden = [call.hidden for call in quantized]", "targets come from the quantized prefix", JOINT),
    (_SEARCHED, "quantized = [c.advanced(run_unit(unit, c.hidden, c)) for c in quantized]", "quantized = exact", "the search is fed by the full-precision prefix", SEQUENTIAL),
    (_SEARCHED, "return set(self.state.searched) & set(names[: names.index(tower.name)])", "return set()", "the search is fed by full-precision towers", SEQUENTIAL),
    (_SEARCHED, "[set(), before] if before else [set()]", "[before, before] if before else [set()]", "targets come from quantized towers", SEQUENTIAL),
    (_BLOCK, "f\"{name}.low\": low[index].expand_as(ratio).clone(),\n                f\"{name}.high\": high[index]", "f\"{name}.low\": low[0].expand_as(ratio).clone(),\n                f\"{name}.high\": high[0]", "a choice does not reach the quantizer", SEQUENTIAL),
    (_CALIBRATOR, "quantized=set(self.state.searched),", "quantized=set(),", "dependency is measured behind full-precision towers", BEHIND),
    (_CALIBRATOR, "seed=self.seed,", "seed=0,", "triples do not depend on the seed", EDGES),
    (_CALIBRATOR, "                self.batches,\n", "                self.search_batches,\n", "dependency is measured on the search's batches only", EDGES),
    (_CALIBRATOR, "with self.structure.only(set()), self.passes.held([unit]):", "with self.structure.only({tower.name}), self.passes.held([unit]):", "a costly proxy's pair stands behind quantized layers", PAIR),
    (_CALIBRATOR, "blocks = partition_blocks(edges, threshold, max_depth)", "blocks = partition_blocks(edges, threshold, 3)", "the depth of blocks is ignored", "tests/calibration/test_partition.py::test_options_reach_the_partition"),
    (_COUNTS, "return row, pick_tokens(mask, row", "return row, pick_tokens(None, row", "triples come from padding", EDGES),
    (_COUNTS, "x.cpu()[row, token, column]", "x.cpu()[row, token, column - 1]", "codes are those of another channel on this one's range", EDGES),
    (_COUNTS, "for r in ranges[int(name)])", "for r in ranges[0])", "codes of all layers use the first one's ranges", EDGES),
    (_COUNTS, "low, high = (r.cpu()[column] for r in ranges[int(name)])", "low, high = ranges[int(name)][0].min(), ranges[int(name)][1].max()", "codes of the dependency are per tensor", EDGES),
    (_COUNTS, "quantized - {tower.name}, on_input", "quantized, on_input", "the measured tower is quantized itself", BEHIND),
    (_COUNTS, "slots += [image, ~image]", "slots += [~image, image]", "image and text are swapped", KINDS),
    (_COUNTS, "codes[index][edge][chosen], codes[index][edge + 1][chosen]", "codes[index][edge + 1][chosen], codes[index][edge][chosen]", "edges point backwards", EDGES),
    (_STATISTICS, "self.observers[site.name].update(x, mask, rows)", "self.observers[site.name].update(x, None, rows)", "ranges count padding", RANGES),
    (_STATISTICS, "low, high = self.ranges(site, [1.0])", "low, high = self.ranges(site, [0.98])", "ranges do not start at min-max", RANGES),
    ("qvlm_lightning/calibration/few_tokens.py", "if part.tokens < FEW_TOKENS:", "if part.tokens < 1:", "an expert of few tokens has a range of its own", EXPERTS),
    (_MODULE, "epoch % self.every_n_epochs == 0", "epoch % 1 == 0", "every_n_epochs is ignored", DUE),
    (_MODULE, " or epoch >= self.epochs)", ")", "there is no final pass", DUE),
    (_MODULE, 'if epoch == 0 else ("language",)', "", "later passes search the tower again", DUE),
    (_ENCODER, "return self.lr * 0.5 * (1 + math.cos(angle))", "return self.lr", "the learning rate does not fall", RATE),
    (_ENCODER, "if index == 0 and not self.finished:", "if self.state.steps == 0:", "Jacobian weights are those of the first epoch", RATE),
    (_ENCODER, "terms = whole(index, self.state.steps)", "terms = whole(0, self.state.steps)", "every step takes the first batch", STEP),
    (_ENCODER, "self.seed * 1_000_003 + step", "self.seed * 1_000_003", "all steps share their triples", DRAW),
    (_ENCODER, "clip_grad_norm_(self.quantizer_parameters(), self.grad_clip)", "clip_grad_norm_(self.quantizer_parameters(), 1.0)", "grad_clip is ignored", CLIPPED),
    ("qvlm_lightning/vision/learned.py", 'for name in (n for n in structure.towers if n != "language"):', "for name in structure.towers:", "the decoder learns too", "tests/calibration/test_visual_encoder.py::test_v1_only_the_listed_parameters_change"),
    (_ENCODER, "shares = [(own[n] * slope).sum()", "shares = [own[n].sum()", "parts of a batch lose the slope of the loss", MICRO),
]

_LOSS_OF_TOWER = "qvlm_lightning/vision/tower_loss.py"
_SOFT = "qvlm_lightning/vision/soft_edges.py"
VISION = [
    (_LOSS_OF_TOWER, ".mean(dim=-1)[mask].sum()", ".mean(dim=-1).sum()", "Jacobian weights count padding", JACOBIAN),
    (_LOSS_OF_TOWER, "jacobian[name.removeprefix(_JOINT)][: len(joints)]", "jacobian[name.removeprefix(_JOINT)][1:]", "an edge has the Jacobian weight of its second unit", TERMS),
    (_LOSS_OF_TOWER, '{"vision": split[: width[0]], "language": split[width[0] :]}', '{"vision": split[: width[0]][::-1], "language": split[width[0] :][::-1]}', "Jacobian weights are those of other units", JACOBIAN),
    (_LOSS_OF_TOWER, "with torch.no_grad(), self.structure.only(set()):", "with torch.no_grad():", "the targets of the loss are quantized", TERMS),
    (_LOSS_OF_TOWER, "squared_error_terms(outputs.last_hidden, last_hidden, mask)", "squared_error_terms(outputs.last_hidden, last_hidden, None)", "the error of the last hidden state counts padding", TERMS),
    (_LOSS_OF_TOWER, "reg = nll / count.clamp_min(1)", "reg = nll + 0 * count", "L_reg is a sum over answers", TERMS),
    (_LOSS_OF_TOWER, "relative[0] + weights.eta * relative[1]", "relative[0] + relative[1]", "eta is ignored", TERMS),
    (_LOSS_OF_TOWER, "reg + weights.lambda_ent * ent +", "reg +", "the entropy term is not in the loss", TERMS),
    (_SOFT, "unit.sites[0].leader", "unit.sites[-1].leader", "units are looked at in their last site", JACOBIAN),
    (_SOFT, "samples = [float(len(rows_and_mask(name, batch)[0])) for name in owner]", 'samples = [float(len(batch["sample_index"])) for name in owner]', "samples without an image count for the tower", JACOBIAN),
    (_SOFT, "token = pick_tokens(mask, row", "token = pick_tokens(None, row", "triples of the loss come from padding", TERMS),
    (_SOFT, "x[row, token, channel]", "x[row, token, channel - 1]", "the loss takes codes of another channel", TERMS),
    (_SOFT, "low, high = low[channel], high[channel]", "low, high = low.min(), high.max()", "the loss takes codes per tensor", TERMS),
    (_SOFT, "pair = codes[edge], codes[edge + 1]", "pair = codes[edge + 1], codes[edge]", "edges of the loss point backwards", TERMS),
]

FORWARD = [
    ("qvlm_lightning/forward/triples.py", "order[row, (fraction * valid[row]).long()]", "order[row, (fraction * length).long()]", "a share of a sample is one of its padded length", EDGES),
    ("qvlm_lightning/forward/passes.py", "calls = []\n            with self.structure.only(quantized):", "calls = []\n            with self.structure.only(set()):", "earlier towers never take part quantized", SEQUENTIAL),
    ("qvlm_lightning/forward/stream.py", "with self.structure.only(quantized), self.held([unit]):", "with self.structure.only(set()), self.held([unit]):", "streamed towers never take part quantized", STREAMED),
    ("qvlm_lightning/forward/stream.py", "with self.structure.only(quantized), taps", "with self.structure.only(set()), taps", "the dependency of a streamed model is measured behind full-precision towers", STREAMED),
]

CALLBACKS = [
    ("callbacks/entropy_repartition.py", "module.repartition(epoch, self.proxy, **self.options)", "module.repartition(epoch, self.proxy)", "options of the partition are ignored", OPTIONS),
    ("callbacks/percentile_search.py", "module.state.passes_done", "module.state.partitions_done", "an epoch that was partitioned is not searched", DUE),
    ("callbacks/quantizer_monitor.py", "(trainer.current_epoch + 1) % self.every_n_epochs == 0", "(trainer.current_epoch + 1) % 1 == 0", "the monitor measures every epoch", MONITOR),
    ("callbacks/quantizer_monitor.py", "new = state.passes[self._passes_drawn :]", "new = state.passes[:]", "the monitor draws a search again", MONITOR),
    ("callbacks/resume_point.py", "step % self.every_n_steps == 0", "step % 1 == 0", "resume points come every step", RESUME),
    ("callbacks/resume_point.py", "step != self._saved_at and ", "", "a step is saved as often as it has batches", RESUME),
]

_CHARTS = "qvlm_lightning/results/charts.py"
_LINES = "tests/results/test_run_report.py"
REPORTING = [
    ("callbacks/percentile_search.py", "if module.reported and not module.state.passes and", "if module.reported and module.state.passes and", "signal to noise before the search is measured behind it", f"{_LINES}::test_signal_to_noise_is_measured_before_the_search_and_after_it"),
    ("callbacks/quantizer_monitor.py", "state.steps + 1 if state.initialised else 0", "0 if state.initialised else 0", "a resumed run drops the curve before its checkpoint", f"{MONITOR}::test_a_resumed_run_goes_on_in_one_curve"),
    ("callbacks/quantizer_monitor.py", "state.steps + 1 if state.initialised else 0", "10**6", "steps that were done again stand twice in a curve", f"{MONITOR}::test_a_resumed_run_goes_on_in_one_curve"),
    ("callbacks/quantizer_monitor.py", "for logger in trainer.loggers:\n            logger.log_metrics(", "for logger in _boards(trainer):\n            logger.log_metrics(", "only TensorBoard gets scalars", f"{MONITOR}::test_every_logger_gets_the_scalars_and_the_hyperparameters"),
    ("qvlm_lightning/calibration/monitoring.py", '_headline("objective", means[1], means[0])', '_headline("objective", means[0], means[1])', "the curve of J is what it starts from", f"{MONITOR}::test_headlines_are_few_and_have_what_they_start_from_in_one_chart"),
    ("qvlm_lightning/calibration/monitoring.py", '(("sqnr_mean", fmean), ("sqnr_worst", min))', '(("sqnr_mean", fmean), ("sqnr_worst", max))', "the best layer is taken for the worst", f"{MONITOR}::test_headlines_are_few_and_have_what_they_start_from_in_one_chart"),
    ("qvlm_lightning/calibration/phases.py", "passed - self._inside", "passed", "a phase inside another is counted twice", "tests/calibration/test_phases.py"),
    ("qvlm_lightning/calibration/phases.py", 'before + value if what == "seconds" else max(before, value)', "value", "seconds before a resume are lost", "tests/calibration/test_phases.py"),
    ("qvlm_lightning/calibration/report.py", '"packed": size.quantized}', '"packed": size.full}', "packed sizes are full ones", f"{_LINES}::test_full_size_is_that_of_all_parameters"),
    ("qvlm_lightning/results/pages.py", "autoescape=True", "autoescape=False", "text of files becomes markup", f"{_LINES}::test_text_of_files_is_escaped_and_bounded"),
    ("qvlm_lightning/results/printable.py", "whole[: limit + 1])", "whole)", "a long text is not bounded before it is escaped", "tests/results/test_charts.py"),
    ("qvlm_lightning/results/run_report.py", "yaml.safe_load(text)", "yaml.unsafe_load(text)", "a configuration executes what it names", f"{_LINES}::test_a_configuration_is_shown_and_never_executed"),
    ("qvlm_lightning/results/next_steps.py", "return shlex.join([*words,", 'return " ".join([*words,', "names with blanks break the next command", f"{_LINES}::test_the_command_for_data_of_ones_own_names_model_and_data"),
    (_CHARTS, 'kind = "b" if of_layer.get(k) == of_layer.get(k + 1) else "g"', 'kind = "b" if of_layer.get(k) == of_layer.get(k) else "g"', "an edge between two blocks is drawn as one inside", "tests/results/test_charts.py"),
    (_CHARTS, "((first, low), (high, last))", "((first, low), (last, high))", "what is cut off above is not shaded", "tests/results/test_charts.py"),
]
# fmt: on

_STREAM = "qvlm_lightning/forward/stream.py"
_CHANGES = "qvlm_lightning/nn/changes.py"
_DECISIONS = "qvlm_lightning/calibration/decisions.py"
_WEIGHT = "qvlm_lightning/nn/weight_quantizer.py"
_STATS = "qvlm_lightning/methods/site_statistics.py"
_RULES = "qvlm_lightning/methods/range_rules.py"
_CHANGING = "tests/methods/test_changing_weights.py"
_TOKENS = "tests/methods/test_site_statistics.py"
STORED = "tests/calibration/test_decisions.py"
_SWITCH = "tests/nn/test_changes.py"
_PARAMETERS = "qvlm_lightning/weights/streamed.py"
_KEPT = "tests/nn/test_streamed.py::test_kept_parameters_are_read_once_and_nobody_writes_into_them"
_STREAM_RUN = "tests/calibration/test_stream_run.py"
_OPEN = f"{_STREAM_RUN}::test_weights_stay_in_ram_only_beside_a_device_and_only_if_all_do"
_STREAMING = "qvlm_lightning/commands/streaming.py"
_TIMED = (
    "tests/commands/test_streaming.py"
    "::test_every_step_is_timed_and_the_calibration_is_that_of_train_py"
)
ENGINE = [
    (
        "qvlm_lightning/models/towers.py",
        "if kind not in family.towers:",
        "if False:",
        "a tower of another kind is not refused",
        "tests/models/test_hub.py",
    ),
    (
        "qvlm_lightning/models/loaded.py",
        "known = known or family_for(str(kind))",
        "known = family_for(str(kind))",
        "a family of one's own is ignored",
        "tests/notebook/test_notebook.py::test_a_family_of_ones_own_is_taken",
    ),
    (
        _CHANGES,
        "        self._on[tower] = on\n        self._place()",
        "        self._on[tower] = on",
        "a switch puts nothing in place",
        _SWITCH,
    ),
    (
        _CHANGES,
        "self._only = before\n            self._place()",
        "self._only = before",
        "what a block put in place stays there",
        _SWITCH,
    ),
    (
        _CHANGES,
        "original = present.data if known is None else known.original",
        "original = present.data",
        "a second decision takes the first for the original",
        _SWITCH,
    ),
    (
        _CHANGES,
        "return name.startswith(modules) or tower in towers",
        "return tower in towers",
        "a module by itself is never in place",
        _SWITCH,
    ),
    (
        "qvlm_lightning/calibration/module.py",
        'with self.phases("loading the model"), torch.device("cpu"):',
        'with self.phases("loading the model"):',
        "a model is built on the default device",
        f"{_STREAM_RUN}::test_a_model_is_built_on_the_cpu_whatever_the_default_device",
    ),
    (
        _PARAMETERS,
        "copy = self._kept is not None",
        "copy = False",
        "a layer writes into the weights that are kept",
        _KEPT,
    ),
    (_PARAMETERS, "if name not in self._kept:", "if True:", "kept weights are read again", _KEPT),
    (
        "qvlm_lightning/calibration/stream_run.py",
        'device.type != "cpu" and total <= ram',
        "total <= ram",
        "on a CPU all weights stay in memory",
        _OPEN,
    ),
    (
        "qvlm_lightning/calibration/stream_run.py",
        'device.type != "cpu" and total <= ram',
        'device.type != "cpu"',
        "weights that do not fit stay in RAM",
        _OPEN,
    ),
    (
        _STREAMING,
        '"epochs": options.steps // len(data.calibration_batches()),',
        '"epochs": options.steps,',
        "the steps asked for are not taken",
        _TIMED,
    ),
    (
        _STREAMING,
        "timed += [callback, laps.behind",
        "timed += [laps.behind",
        "nothing is searched while it is timed",
        _TIMED,
    ),
    (
        _CHANGES,
        "        self.switch(tower, False)\n",
        "",
        "a second pass decides from changed weights",
        f"{_CHANGING}::test_a_second_pass_decides_from_the_original_weights",
    ),
    (
        _SEARCHED,
        "linear.weight_quantizer.measure_again()",
        "pass",
        "a method finds the weight ranges of the one before",
        f"{_CHANGING}::test_another_method_finds_the_original_weights",
    ),
    (
        _SEARCHED,
        "self.state.changed |= dict.fromkeys(changed, file)",
        "pass",
        "a checkpoint does not know what was changed",
        f"{_CHANGING}::test_a_resumed_run_has_the_changed_weights_again",
    ),
    (
        _SEARCHED,
        'self.batches[0 if method.pairs == "all" else 1]',
        "self.batches[1]",
        "every method sees the search pairs only",
        f"{_CHANGING}::test_a_method_without_use_for_the_search_pairs_sees_all",
    ),
    (
        _SEARCHED,
        "one = from_main(self.decisions.read(name, key, index) if is_main() else None)",
        "one = None",
        "stored decisions are not replayed",
        f"{_CHANGING}::test_stored_decisions_are_replayed",
    ),
    (
        _DECISIONS,
        'if said.get("key") != key:',
        "if False:",
        "decisions of another calibration are taken over",
        STORED,
    ),
    (
        _WEIGHT,
        "if self.low is None or self.high is None:",
        "if True:",
        "decided weight ranges are not used",
        f"{_CHANGING}::test_it_lowers_the_error_and_stays_on_the_grid",
    ),
    (
        "qvlm_lightning/weights/streamed.py",
        "decided = self.changes.decided(name)",
        "decided = None",
        "a streamed model reads the original weights",
        f"{_CHANGING}::test_a_streamed_model_decides_the_same",
    ),
    (
        _STREAM,
        "if not self.structure.changes:",
        "if True:",
        "streamed variants share the weights of the first",
        f"{_CHANGING}::test_a_streamed_model_decides_the_same",
    ),
    (
        "qvlm_lightning/artifact/filling.py",
        "            module.hold_range()",
        "            pass",
        "an artifact with decided weight ranges cannot be loaded",
        f"{_CHANGING}::test_the_artifact_is_the_quantized_model",
    ),
    (
        _REPLAY,
        "            held[own] = before\n        if replaced:",
        "            pass\n        if replaced:",
        "a decision that was tried stays in place",
        f"{_TOKENS}::test_a_decision_reaches_the_inputs_behind_it",
    ),
    (
        _STATS,
        "_add_product(self.gram, weighted, rows)",
        "_add_product(self.gram, weighted, rows.abs())",
        "the Gram matrix loses signs",
        f"{_TOKENS}::test_gram_and_mean_magnitude_are_sums_over_tokens",
    ),
    (
        "qvlm_lightning/methods/token_weights.py",
        "return weight if mask_BT is None else weight * mask_BT",
        "return mask_BT",
        "tokens all count the same",
        f"{_TOKENS}::test_j_counts_each_token_by_its_weight",
    ),
    (
        "qvlm_lightning/methods/scaling.py",
        "if set(source.readers) & s.linears.keys()]",
        "if not source]",
        "ranges do not follow a scale fold",
        f"{_TOKENS}::test_a_scale_fold_changes_ranges_and_nothing_in_full_precision",
    ),
    (
        _RULES,
        "low = low + self.constant * (lowest - low)",
        "low = torch.minimum(low, lowest)",
        "the moving average is a minimum",
        "tests/methods/test_range_rules.py::test_the_moving_average_is_that_of_a_loop",
    ),
    (
        _RULES,
        "choice = errors.argmin(dim=1)",
        "choice = 0 * errors.argmin(dim=1)",
        "least squares chooses min-max",
        "tests/methods/test_range_rules.py::test_least_squares_chooses_the_least_error_of_the_activations",
    ),
]

_SINKS = "qvlm_lightning/nn/sinks.py"
_FOUND = "qvlm_lightning/calibration/sinks.py"
_SINK_UNIT = "tests/nn/test_sinks.py"
_SINK = "tests/wiring/test_sinks.py"
_CACHE = f"{_SINK}::test_prefix_is_a_full_precision_cache_in_front_of_a_quantized_prompt"
_PLACES = f"{_SINK_UNIT}::test_places_are_those_of_a_loop"
_ROWS = f"{_SINK_UNIT}::test_rows_follow_stacked_copies_flat_tokens_and_experts"
_OF_EXPERTS = "tests/calibration/experts/test_search.py::test_sink_tokens_of_experts_are_neither_searched_nor_quantized"
SINKS = [
    (
        _SINKS,
        "rank = (real.cumsum(dim=1) - 1).masked_fill(real == 0, size)[:, -length:]",
        "rank = torch.arange(past, past + length).expand_as(ids)",
        "the first tokens are those of the padding",
        _PLACES,
    ),
    (
        _SINKS,
        "real = ids.new_ones(len(ids), past + length)\n        if mask is not None:\n            real[:, -mask.shape[1] :] = mask",
        "real = torch.ones_like(ids)\n        if mask is not None:\n            real = mask[:, -length:].long()",
        "a token behind a cache is a first one",
        _PLACES,
    ),
    (
        _SINKS,
        "if self.stored and not bool(same.all()):",
        "if False and not bool(same.all()):",
        "keys of other first tokens are taken",
        f"{_SINK_UNIT}::test_stored_keys_refuse_a_prompt_that_begins_otherwise",
    ),
    (
        _SINKS,
        "return torch.where(first & (same | (rank == 0)), rank, place)",
        "return torch.where(first, rank, place)",
        "another second token is a sink",
        _PLACES,
    ),
    (
        _SINKS,
        "route.tokens is not None and not self.spread:",
        "route.tokens is not None and False:",
        "rows of experts are taken for tokens in order",
        _ROWS,
    ),
    (
        _SINKS,
        "route.tokens is not None and not self.spread:",
        "route.tokens is not None:",
        "tokens of a single site are taken for rows of an expert",
        _OF_EXPERTS,
    ),
    (
        _SINKS,
        "if rest or (len(rows) == 2 and rows[1] != place.shape[1]):",
        "if rest:",
        "an activation of another pass is taken",
        f"{_SINK_UNIT}::test_an_activation_of_another_pass_is_refused",
    ),
    (
        _SINKS,
        "first = (place >= 0) & (place < len(self.value))",
        "first = place >= 0",
        "recurring tokens take keys of the first one",
        f"{_SINK_UNIT}::test_stored_rows_take_the_place_of_the_first_tokens_only",
    ),
    (
        _SINKS,
        "self.places(ids, mask, 0 if cache is None else int(cache.get_seq_length()))",
        "self.places(ids, mask, 0)",
        "a decoded token is taken for the first",
        f"{_SINK_UNIT}::test_a_pass_is_noted_from_the_arguments_of_the_model",
    ),
    (
        _SINKS,
        "if not torch.is_grad_enabled():\n                self.place = None",
        "if False:\n                self.place = None",
        "a layer run by itself takes the sinks of the pass before",
        f"{_SINK_UNIT}::test_a_place_ends_with_its_pass_unless_a_backward_pass_may_follow",
    ),
    (
        _SINKS,
        "self._note(names.bind_partial(*args, **kwargs).arguments)",
        "self._note({'input_ids': args[0] if args else None} | kwargs)",
        "a mask given by its place is not seen",
        f"{_SINK_UNIT}::test_a_pass_is_noted_from_the_arguments_of_the_model",
    ),
    (
        "qvlm_lightning/nn/linear.py",
        "return output if self.sink_output is None or not self.enabled else self.sink_output(output)",
        "return output",
        "stored keys and values are not used",
        _CACHE,
    ),
    (
        "qvlm_lightning/nn/quantizer.py",
        "y = torch.where((self.sinks.rows(x.shape, self.route) >= 0)[..., None], x, y)",
        "pass",
        "sinks are quantized",
        f"{_SINK}::test_bypass_quantizes_no_sink_and_every_other_token",
    ),
    (
        "qvlm_lightning/nn/sink_surgery.py",
        "site.quantizer.sinks, site.quantizer.route = structure.sinks, site.route",
        "site.quantizer.sinks = structure.sinks",
        "experts do not know their rows",
        _OF_EXPERTS,
    ),
    (
        "qvlm_lightning/nn/sink_surgery.py",
        "for x in (attention.k, attention.v))",
        "for x in (attention.k,))",
        "values are not stored",
        _CACHE,
    ),
    (
        "qvlm_lightning/nn/replay.py",
        "with placed(unit, tensors or {}), call.sinks_placed():",
        "with placed(unit, tensors or {}):",
        "a layer run by itself does not know its sinks",
        f"{_SINK}::test_a_search_runs_behind_the_stored_keys_and_values",
    ),
    (
        "qvlm_lightning/forward/passes.py",
        "call.sinks = sinks, place.to(self.device)",
        "pass",
        "a call does not say its sinks",
        f"{_SINK}::test_a_search_runs_behind_the_stored_keys_and_values",
    ),
    (
        "qvlm_lightning/forward/samples.py",
        'return mask & ~batch["sink"] if "sink" in batch else mask',
        "return mask",
        "sinks count in ranges",
        f"{_SINK}::test_ranges_are_those_of_all_other_tokens",
    ),
    (
        "qvlm_lightning/calibration/calibrator.py",
        "batches[:] = [with_sinks(self.structure.sinks, b) for b in batches]",
        "pass",
        "batches do not say their sinks",
        f"{_SINK}::test_ranges_are_those_of_all_other_tokens",
    ),
    (
        "qvlm_lightning/calibration/statistics.py",
        "        first_tokens.store()\n",
        "",
        "keys and values do not reach the model",
        _CACHE,
    ),
    (
        _FOUND,
        "self.sinks.prefix = self.constant[: prefix_length(massive, len(self.constant))]",
        "self.sinks.prefix = self.constant[:1]",
        "a second massive token is no sink",
        f"{_SINK}::test_sinks_are_those_that_are_massive",
    ),
    (
        _FOUND,
        "if sum(place in found for found in massive.values()) >= SHARE * len(massive)",
        "if massive",
        "every constant token is a sink",
        f"{_SINK}::test_a_model_without_massive_tokens_has_the_first_one",
    ),
    (
        _FOUND,
        "n >= 2 and n >= SHARE * there[t]",
        "n >= 99",
        "recurring tokens are not found",
        f"{_SINK}::test_sinks_are_those_that_are_massive",
    ),
    (
        _FOUND,
        "if not gap <= AGREEMENT",
        "if False and not gap <= AGREEMENT",
        "keys that differ between samples are stored",
        "tests/calibration/test_sinks.py::test_keys_that_differ_between_samples_are_refused",
    ),
    (
        _FOUND,
        "if known is None or sample < known[0]:",
        "if True:",
        "processes store keys of different samples",
        "tests/calibration/test_sinks.py::test_every_process_stores_the_keys_of_the_first_sample",
    ),
    (
        "qvlm_lightning/artifact/loading.py",
        'structure.sinks.update(manifest.get("sinks"))',
        "pass",
        "a loaded artifact does not know its sinks",
        "tests/artifact/test_sinks.py::test_a_loaded_model_knows_its_sinks",
    ),
    (
        "qvlm_lightning/weights/exported.py",
        'WEIGHTS, CONFIG = "weights.packed", "config.json"',
        'WEIGHTS, CONFIG = "model.safetensors", "config.json"',
        "other programs load an artifact as full precision",
        "tests/artifact/test_artifact.py::test_no_other_program_takes_an_artifact_for_full_precision",
    ),
    (
        "qvlm_lightning/weights/exported.py",
        "if said != sha256_of(folder / name):",
        "if said is None:",
        "a tensor file of another artifact is loaded",
        "tests/artifact/test_broken.py::test_a_tensor_file_of_another_artifact_is_named",
    ),
    (
        "qvlm_lightning/vision/parts.py",
        "[with_sinks(sinks, with_image_rows(family, model, batch)) for batch in batches]",
        "[with_image_rows(family, model, batch) for batch in batches]",
        "the tower's loss counts sinks",
        "tests/calibration/test_sinks.py::test_parts_of_a_process_say_their_sinks",
    ),
]
_OWN = "qvlm_lightning/quant/overrides.py"
_SCHEME = "qvlm_lightning/quant/scheme.py"
_SURGERY = "qvlm_lightning/nn/surgery.py"
_PEAKS = "qvlm_lightning/calibration/token_peaks.py"
_MASSIVE = "qvlm_lightning/calibration/massive.py"
_NN_TESTS = "tests/nn/test_overrides.py"
_SCHEMES = "tests/quant/test_overrides.py"
_PEAK_TESTS = "tests/calibration/test_token_peaks.py"
_MASSIVE_TESTS = "tests/calibration/test_massive.py"
WIDE = f"{_NN_TESTS}::test_every_layer_has_the_widths_of_plain_loops"
REFUSED = f"{_NN_TESTS}::test_what_cannot_be_is_refused_before_anything_is_changed"
MIXED = "tests/wiring/test_overrides.py::test_logits_are_those_of_plain_loops"
LAST = f"{_SCHEMES}::test_the_last_pattern_that_gives_a_width_decides"
APART = f"{_SCHEMES}::test_names_and_stored_values_tell_schemes_apart"
ORDER = f"{_SCHEMES}::test_the_order_counts_where_two_runs_are_compared"
WORST = f"{_PEAK_TESTS}::test_the_worst_token_is_that_of_plain_loops_whatever_the_padding"
TWICE = f"{_PEAK_TESTS}::test_a_sample_that_comes_again_is_counted_once"
REACHED = f"{EXPERTS}::test_peaks_of_an_expert_have_the_positions_of_its_own_tokens"
PEAKS = "tests/wiring/test_token_peaks.py"
OUT = f"{_MASSIVE_TESTS}::test_what_is_proposed_takes_these_sites_out_and_no_others"
AGAIN = f"{_MASSIVE_TESTS}::test_what_has_more_bits_already_is_not_proposed_again"
WARNED = f"{_MASSIVE_TESTS}::test_a_warning_names_the_five_worst_sites_and_what_helps"
# fmt: off
OVERRIDES = [
    (_OWN, "            found |= bits\n", "            found = bits | found\n", "the first pattern decides", LAST),
    (_OWN, "if matches(pattern, name):", "if matches('^' + pattern, name):", "a pattern is looked for at the start of names", LAST),
    (_OWN, "told = json.dumps(list(overrides.items())).encode()", "told = json.dumps(overrides, sort_keys=True).encode()", "the name of a scheme forgets the order of its overrides", ORDER),
    (_SCHEME, "return self.to_dict() | ({\"overrides\": pairs} if pairs else {})", "return self.to_dict()", "a run goes on with overrides in another order", ORDER),
    (_SCHEME, "return whole + overrides_suffix(self.overrides)", "return whole", "a scheme with overrides is reported as one without", APART),
    (_SURGERY, "weight_bits = scheme.widths(part, f\"{unit.name}.{name}\").weight_bits", "weight_bits = scheme.part(part).weight_bits", "overrides do not reach weights", WIDE),
    (_SURGERY, "widths = scheme.widths(part, f\"{unit.name}.{names[0]}\")", "widths = scheme.part(part)", "overrides do not reach activations", MIXED),
    (_SURGERY, "    check_overrides(scheme.overrides, inputs)\n", "", "overrides without effect are accepted", REFUSED),
    (_SURGERY, "if _off(widths[full]):", "if _off(scheme.part(part)):", "an override switches no layer on or off", WIDE),
    ("qvlm_lightning/nn/overridden.py", "if len({each.activation_bits for each in widths.values()}) > 1:", "if not widths and widths:", "layers of one input have different widths", REFUSED),
    (_PEAKS, "kept = mask_BT[row].cpu().nonzero()[:, 0]", "kept = kept[: int(mask_BT[row].sum())]", "peaks count padding in front", WORST),
    (_PEAKS, "place = kept - kept[0] if", "place = kept if", "positions count padding in front", WORST),
    (_PEAKS, "return tokens_BS - mask_BT.to(tokens_BS.device).int().argmax(dim=1, keepdim=True)", "return tokens_BS", "positions of an expert's tokens count padding", REACHED),
    (_PEAKS, "            known.pop(index, None)\n", "            pass\n", "a sample that comes again keeps its old positions", TWICE),
    (_PEAKS, "    return expert_places(route.tokens, mask)", "    return mask.cumsum(dim=1)[:, : route.tokens.shape[1]] - 1", "an expert's tokens count as if they followed each other", REACHED),
    (_STATISTICS, "self.peaks.merge(name, other[name])", "pass", "a process knows the peaks of its own samples only", f"{PEAKS}::test_processes_share_what_they_have_seen"),
    (_STATISTICS, "self.peaks.update(site.name, x, mask, rows, places)", "self.peaks.update(site.name, x, None, rows, places)", "peaks count padding", f"{PEAKS}::test_every_token_of_every_sample_has_its_magnitude"),
    (_MASSIVE, "if {name for name in known if re.search(pattern, name)} == wanted:", "if pattern:", "a proposal matches the tower too", OUT),
    (_MASSIVE, "bits = 8 if site.quantizer.num_bits < 8 else OFF", "bits = 8", "at 8 bits 8 are proposed", OUT),
    (_MASSIVE, "return bits < OFF and bits <= scheme.part(part).activation_bits", "return bits < OFF", "what was proposed and given is proposed again", AGAIN),
    (_MASSIVE, "names = sorted(massive_sites(peaks, list(exposed)), key=peaks.ratio, reverse=True)", "names = massive_sites(peaks, list(exposed))", "a warning names the first sites", WARNED),
    (_MASSIVE, "    if scheme.activation_mode == \"dynamic_token\":\n        return []\n", "", "a mode that gives every token its range is warned about", WARNED),
]
# fmt: on
FIDELITY = [
    (
        "qvlm_lightning/metrics/fidelity.py",
        "counts = mask[:, 1:] & mask[:, :-1]",
        "counts = mask[:, 1:]",
        "the first token of a text has a loss",
        f"{_TEXT}::test_loss_is_that_of_a_loop",
    ),
    (
        "qvlm_lightning/metrics/fidelity.py",
        "return torch.cat([answer_kl(*pair) for pair in pairs])",
        "return torch.cat([answer_kl(*pair[::-1]) for pair in pairs])",
        "the divergence of a text is that of the reference from the model",
        f"{_TEXT}::test_divergence_is_that_of_a_loop",
    ),
    (
        "qvlm_lightning/metrics/fidelity.py",
        "length = max(len(answer), len(reference))",
        "length = min(len(answer), len(reference))",
        "a longer answer agrees as a whole",
        f"{_TEXT}::test_agreement_is_that_of_a_loop",
    ),
    (
        "qvlm_lightning/evaluation/fidelity.py",
        'mask &= batch["input_ids"] != self._image',
        "pass",
        "placeholders of an image count as text",
        READ,
    ),
    (
        "qvlm_lightning/evaluation/fidelity.py",
        'inputs["position_ids"] = positions(batch["attention_mask"])',
        'inputs["position_ids"] = positions(batch["attention_mask"]).flip(1)',
        "a text is read in other places than it was written",
        READ,
    ),
    (
        "qvlm_lightning/evaluation/fidelity.py",
        "known[first : first + len(prompts)]",
        "known[: len(prompts)]",
        "every batch is read with the answers of the first",
        READ,
    ),
    (
        "qvlm_lightning/evaluation/fidelity.py",
        "self._read(model, prompts, told)",
        "self._read(model, prompts, [[] for _ in told])",
        "the reference stops before the answers",
        READ,
    ),
    (
        "qvlm_lightning/evaluation/fidelity.py",
        'return bool(about.get("key") == self.key)',
        "return True",
        "a reference of other inputs is taken",
        f"{_READ}::test_the_reference_is_made_once_for_inputs_and_weights",
    ),
    (
        "qvlm_lightning/evaluation/fidelity.py",
        "return token_kl(stored[None].float(), logits_NV[None].float(), everything.to(stored.device))",
        "return token_kl(stored[None].float(), 2 * logits_NV[None].float(), everything.to(stored.device))",
        "logits are compared with a reference of another scale",
        f"{_READ}::test_full_precision_agrees_with_itself_but_for_stored_rounding",
    ),
    (
        "qvlm_lightning/results/fidelity.py",
        'return Fidelity(**about["fidelity"]) if about.get("key") == key else None',
        'return Fidelity(**about["fidelity"])',
        "fidelity of an older artifact is taken",
        f"{_READ}::test_a_stored_result_is_taken_for_its_own_key_only",
    ),
    (
        "qvlm_lightning/commands/_table_row.py",
        "not there or measured)",
        "not there)",
        "a measurement counts as nothing to do",
        f"{_TABLE}::test_a_row_that_lacks_fidelity_alone_is_no_skipped_step",
    ),
    (
        "qvlm_lightning/commands/_table_plan.py",
        'return method.replace("-", "_").endswith',
        "return method.endswith",
        "a row whose preset has a hyphen in its name is refused when it is scored",
        "tests/test_configs.py::test_a_row_of_a_table_knows_its_artifact",
    ),
    (
        "qvlm_lightning/commands/_table_plan.py",
        'options = [f"--model.init_args.scheme.activation_mode={mode}", *options]',
        "options = [*options]",
        "the activation mode of a row does not reach its calibration",
        f"{_TABLE}::test_rows_of_one_method_in_several_modes",
    ),
    (
        "qvlm_lightning/commands/_table_disk.py",
        "if filecmp.cmp(mine, theirs, shallow=False):",
        "if mine.stat().st_size == theirs.stat().st_size:",
        "weights of one size are taken for equal",
        "tests/commands/test_table_disk.py::test_equal_weights_are_kept_once",
    ),
]

_TINY_SINKS = "qvlm_lightning/models/tiny/sinks.py"
_SINK_TESTS = "tests/models/tiny/test_sinks.py"
SHARED_HEADS = f"{_SINK_TESTS}::test_logits_stay_where_heads_share_values"
RATIO = f"{_SINK_TESTS}::test_the_first_token_peaks_at_the_wanted_ratio"
LOOPS = f"{_SINK_TESTS}::test_the_channel_is_that_of_plain_loops"
SINK_TABLE = "tests/commands/test_table.py::test_a_table_with_a_sink"
LIKE_ONLY = "tests/evaluation/test_report.py::test_a_row_with_a_sink_is_compared_with_its_like_only"
OF_ANOTHER = (
    "tests/evaluation/test_module.py::test_artifact_with_a_sink_is_refused_where_none_is_configured"
)
STRESS = [
    (
        _TINY_SINKS,
        "chosen, scale / sink.ratio)",
        "chosen, scale)",
        "the sink is scaled by the ratio instead of to it",
        RATIO,
    ),
    (
        _TINY_SINKS,
        "source.channels(weight_OC.shape[1])",
        "torch.arange(weight_OC.shape[1]) % len(factor_S)",
        "copies of a value head are taken for channels",
        SHARED_HEADS,
    ),
    (
        _TINY_SINKS,
        'if "bias" in own:',
        'if "bias" in {}:',
        "the bias of a value projection stays",
        SHARED_HEADS,
    ),
    (
        _TINY_SINKS,
        "first_BT = real_BT & (real_BT.cumsum(dim=1) == 1)",
        "first_BT = real_BT & (torch.arange(real_BT.shape[1]) == 0)",
        "behind padding there is no first token",
        LOOPS,
    ),
    (
        _TINY_SINKS,
        "others_NC.amax(dim=0)",
        "others_NC.mean(dim=0)",
        "other tokens may be as massive as the first",
        LOOPS,
    ),
    (
        "qvlm_lightning/models/tiny_family.py",
        'for name in ("outlier_scale", "sink_scale"):',
        'for name in ("outlier_scale",):',
        "a model with a sink is streamed without it",
        "tests/models/test_weight_map.py::test_what_cannot_be_streamed_says_so",
    ),
    (
        "qvlm_lightning/models/tiny_family.py",
        "sink = {} if self.sink_scale == 1 else",
        "sink = {} if self.sink_scale else",
        "a model with a sink does not say so",
        f"{_SINK_TESTS}::test_the_description_names_a_sink_only_where_there_is_one",
    ),
    (
        "qvlm_lightning/evaluation/module.py",
        "(scales | self.family.describe())",
        "self.family.describe()",
        "an artifact with a sink answers for the model as trained",
        OF_ANOTHER,
    ),
    (
        "qvlm_lightning/evaluation/module.py",
        "manifest.get(key, scales.get(key))",
        "manifest.get(key)",
        "artifacts of earlier versions are refused",
        OF_ANOTHER,
    ),
    (
        "qvlm_lightning/results/variant.py",
        "Variant(self.model, **self.stress._asdict())",
        "Variant(self.model, outlier_scale=self.outlier_scale)",
        "a row with a sink is compared with another model",
        LIKE_ONLY,
    ),
    (
        "qvlm_lightning/results/rows.py",
        "*Stress._fields",
        '"outlier_scale"',
        "rows with and without a sink are averaged",
        "tests/evaluation/test_means.py::test_only_seeds_are_averaged",
    ),
    (
        "qvlm_lightning/results/steps.py",
        'row["against"], Stress.of(row)',
        'row["against"], Stress(row["outlier_scale"])',
        "steps with a sink are not labelled",
        "tests/evaluation/test_steps.py::test_the_table_of_steps",
    ),
    (
        "qvlm_lightning/commands/_table_configs.py",
        "*stress_options(calibration.stress),",
        "*[],",
        "calibrations of a table have no stress",
        SINK_TABLE,
    ),
    (
        "qvlm_lightning/commands/_table_calibrations.py",
        "product(plan.outlier_scales, plan.sink_scales)",
        "zip(plan.outlier_scales, plan.sink_scales)",
        "a table leaves out combinations of scales",
        SINK_TABLE,
    ),
    (
        "qvlm_lightning/commands/_table_row.py",
        "                    *stress_options(stress),\n",
        "",
        "a table evaluates the model as trained",
        SINK_TABLE,
    ),
]

_TYPES = "tests/artifact/test_stored_types.py"
STORED_TYPES = f"{_TYPES}::test_weights_keep_the_type_of_their_folder"
QUANTIZE = "tests/commands/test_quantize.py"
UNTRUSTED = "tests/artifact/test_untrusted.py"
GIVEN = "tests/data/test_given.py"

DAILY = [
    (
        "qvlm_lightning/artifact/stored.py",
        "held = {n: (stored or {}).get(n, x.dtype) for n, x in plain.items()}",
        "held = {n: x.dtype for n, x in plain.items()}",
        "an artifact of a half-precision folder is twice as large as it",
        STORED_TYPES,
    ),
    (
        "qvlm_lightning/artifact/loading.py",
        "model = _empty_model(held_by, types, without_values=packed)",
        "model = _empty_model(held_by, types_of({}, shapes), without_values=packed)",
        "a loaded artifact computes in the type of its files",
        STORED_TYPES,
    ),
    (
        "qvlm_lightning/nn/adapters.py",
        "(weight + self.b @ self.a).to(self.stored or weight.dtype).to(weight.dtype)",
        "(weight + self.b @ self.a).to(weight.dtype)",
        "a changed weight is rounded after its codes were computed",
        STORED_TYPES,
    ),
    (
        "qvlm_lightning/models/tiny_family.py",
        "return super().stored_types(model) if as_trained else {}",
        "return super().stored_types(model)",
        "injected outliers are rounded to half precision",
        f"{_TYPES}::test_a_model_whose_weights_no_folder_holds_keeps_its_own_type",
    ),
    (
        "qvlm_lightning/artifact/untrusted.py",
        'checked_name(method, "its method")',
        "str(method)",
        "a method of an artifact names a file elsewhere",
        f"{UNTRUSTED}::test_a_method_that_is_no_name_is_refused",
    ),
    (
        "qvlm_lightning/evaluation/questions_of_runs.py",
        'arguments.pop("family", None)',
        'arguments.pop("nothing", None)',
        "a run folder names a class of the model's family",
        UNTRUSTED,
    ),
    (
        "qvlm_lightning/models/checkpoint.py",
        "if not isinstance(name, str) or Path(name).name != name:",
        "if not isinstance(name, str):",
        "an index of weights reads files elsewhere",
        f"{UNTRUSTED}::test_a_weight_index_stays_inside_its_folder",
    ),
    (
        "qvlm_lightning/models/checks.py",
        "at_most(SECONDS_OF_TEMPLATE)",
        "at_most(3600)",
        "a chat template without end is waited for",
        f"{UNTRUSTED}::test_a_chat_template_without_end_is_refused",
    ),
    (
        "qvlm_lightning/commands/quantize.py",
        "*options, *chosen.options(own.model), *others]",
        "*options, *others, *chosen.options(own.model)]",
        "what is given by hand does not win",
        QUANTIZE,
    ),
    (
        "qvlm_lightning/commands/_quantize_choice.py",
        "ways = ((False, False), (True, False), (True, True))",
        "ways = ((False, False),)",
        "a model that does not fit is not streamed",
        f"{QUANTIZE}::test_what_does_not_fit_in_memory_is_streamed",
    ),
    (
        "qvlm_lightning/data/given.py",
        'f"{path.name}:{number}", path.parent)',
        'f"{path.name}:{number}", Path())',
        "images of a file elsewhere are looked for here",
        f"{GIVEN}::test_a_file_elsewhere_finds_its_images",
    ),
]
_IMAGES, _MESSAGES, _CHECKS = (
    "tests/data/test_image.py",
    "tests/data/test_messages.py",
    "tests/models/test_checks.py",
)
LOST_IMAGE = f"{_MESSAGES}::test_an_image_is_never_left_out_in_silence"
BAD_BOUNDS = (
    "tests/artifact/test_broken.py::test_bounds_that_mean_nothing_are_neither_loaded_nor_exported"
)
STALE = "tests/evaluation/test_report.py::test_answers_to_another_prompt_are_not_compared"
_BEFORE = "tests/evaluation/test_before.py"
NUMBERS = "tests/calibration/test_checks.py"
# fmt: off
SEAM = [
    ("qvlm_lightning/data/image.py", "ExifTags.Base.Orientation, 1) != 1", "ExifTags.Base.Orientation, 1) > 3", "an image upside down stays so", f"{_IMAGES}::test_an_image_is_turned_as_its_camera_says"),
    ("qvlm_lightning/data/image.py", "        grey.getexif().update(image.getexif())\n", "", "an image of 16 bits is not turned", f"{_IMAGES}::test_sixteen_bits_are_turned_as_well"),
    ("qvlm_lightning/data/image.py", "_TO_EIGHT_BITS = 257", "_TO_EIGHT_BITS = 256", "white of 16 bits is no white", f"{_IMAGES}::test_sixteen_bits_of_grey_are_scaled_to_eight"),
    ("qvlm_lightning/data/image.py", "else shown(image, \"an image in memory\")", "else image", "an image in memory is not turned", f"{_IMAGES}::test_an_image_is_turned_as_its_camera_says"),
    ("qvlm_lightning/data/image.py", 'f"{pixels.size}".encode() + pixels.tobytes()', "pixels.tobytes()", "a tall and a wide image are one", f"{_IMAGES}::test_equal_pixels_have_one_digest_however_they_are_stored"),
    ("qvlm_lightning/data/image.py", 'and ".." not in given.parts', "", "a row names any file above its folder", f"{_IMAGES}::test_a_name_may_not_lead_out_of_the_folder"),
    ("qvlm_lightning/data/messages.py", "            empty += not named\n", "", "a part of type image without an image is left out", LOST_IMAGE),
    ("qvlm_lightning/data/messages.py", 'if (key := stray_image(message, (role, content))) is not None', "if (key := None) is not None", "an image beside the text of a message is left out", LOST_IMAGE),
    ("qvlm_lightning/data/image_names.py", "if _is_image(value) or (not said and", "if (not said and", "a file under another key is left out of a row without an image", LOST_IMAGE),
    ("qvlm_lightning/data/messages.py", 'answer = "" if row.get("answer") is None else row["answer"]', 'answer = row.get("answer") or ""', "the answer 0 is none", f"{_MESSAGES}::test_what_cannot_be_read_is_named"),
    ("qvlm_lightning/data/controls.py", "digests = {id(image): pixel_digest(image)", "digests = {id(image): str(id(image))", "a shuffled image is the same picture", "tests/data/test_controls.py::test_another_image_has_other_pixels"),
    ("qvlm_lightning/data/collate.py", "                _encode(processor, [sample], [text], pixels)\n", "                pass\n", "a batch is named for one sample that cannot be read", f"{_CHECKS}::test_an_image_that_a_processor_refuses_is_named_with_its_sample"),
    ("qvlm_lightning/data/loaders.py", "for i in [*longest, *odd.values()]:", "for i in longest:", "a strip is found in the middle of an evaluation", f"{_BEFORE}::test_a_processor_that_refuses_a_strip_does_so_first"),
    ("qvlm_lightning/evaluation/run.py", "    run.check(again)\n", "    run.batches = run._in_batches(data.evaluation)\n", "nobody hears of prompts that are too long", f"{_BEFORE}::test_prompts_that_are_too_long_are_told_before_they_are_answered"),
    ("qvlm_lightning/evaluation/questions.py", "json.dumps([*row, _image_digest(sample.image, known)])", "json.dumps([*row, sample.image is not None])", "answers about another picture are taken over", "tests/evaluation/test_questions.py::test_other_pixels_or_bytes_are_other_questions"),
    ("qvlm_lightning/results/report.py", "if reference is not None and not other_settings(answered, reference):", "if reference is not None:", "answers to another prompt have a difference to full precision", STALE),
    ("qvlm_lightning/results/report.py", "if guessed is not None and not other_settings(guessed, answered):", "if guessed is not None:", "a control of another prompt stands beside full precision", STALE),
    ("qvlm_lightning/models/checks.py", "    if asked[0] == asked[1]:", "    if asked[0] == 1:", "a template that writes no image is used", f"{_CHECKS}::test_a_processor_that_makes_no_prompts_is_named_with_its_folder"),
    ("qvlm_lightning/models/checks.py", "int(kind in _CLASS_TOKENS)", "1", "SigLIP has a class token", f"{_CHECKS}::test_patches_of_every_tower_are_counted"),
    ("qvlm_lightning/models/checks.py", "for part in (settings, *inner):", "for part in (settings,):", "a quantized language model is taken for full precision", f"{_CHECKS}::test_a_model_that_is_quantized_already_is_refused"),
    ("qvlm_lightning/models/offline.py", "            each.HF_HUB_OFFLINE = True\n", "            pass\n", "a hub that does not answer is asked again and again", f"{_CHECKS}::test_a_hub_that_does_not_answer_is_asked_once"),
    ("qvlm_lightning/models/hub.py", 'check_finite(model.named_parameters(), f"model {self.path!r}")', "pass", "a folder with NaN is loaded", f"{_CHECKS}::test_a_weight_that_is_none_is_never_loaded"),
    ("qvlm_lightning/calibration/checks.py", "    if module.exports:\n", "    if not module.exports:\n", "what cannot be exported is found out at the end", f"{NUMBERS}::test_only_what_will_be_exported_must_be_saved"),
    ("qvlm_lightning/forward/samples.py", '"calibration_images": ("pixel_values",)', '"calibration_images": ()', "a run goes on with other pictures", f"{NUMBERS}::test_other_pixels_are_another_calibration"),
    ("qvlm_lightning/calibration/calibrator.py", '        check_bounds(self.model, "the calibration")\n', "", "a checkpoint with bounds of NaN is gone on from", f"{NUMBERS}::test_a_bound_of_a_checkpoint_that_is_none_is_named"),
    ("qvlm_lightning/calibration/decisions.py", "        if not math.isfinite(score):", "        if score is None:", "an objective of NaN is a decision", f"{NUMBERS}::test_a_decision_of_numbers_that_are_none_is_not_taken"),
    ("qvlm_lightning/vision/tower_loss.py", "        if not bool(total.isfinite()):", "        if total is None:", "a loss of NaN teaches", f"{NUMBERS}::test_a_loss_that_is_none_ends_the_optimisation"),
    ("qvlm_lightning/artifact/loading.py", '        check_bounds(model, f"artifact {str(path)!r}")\n', "", "an artifact with bounds of NaN is loaded", BAD_BOUNDS),
    ("qvlm_lightning/artifact/filling.py", '    check_bounds(model, where)\n', "", "an artifact with bounds of NaN is packed", BAD_BOUNDS),
    ("qvlm_lightning/artifact/saving.py", '    check_bounds(model, "the calibrated model")\n', "", "bounds of NaN are exported", BAD_BOUNDS),
    ("qvlm_lightning/nn/finite.py", "bool((low > high).any())", "bool((low > high).all() & False)", "a range upside down is loaded", BAD_BOUNDS),
    ("qvlm_lightning/evaluation/generate.py", "finite &= written.ended | out", "finite &= out", "what follows the end of an answer counts", "tests/evaluation/test_generate.py::test_logits_that_are_none_are_named_with_the_question"),
    ("qvlm_lightning/results/render.py", "used + widths[place] > width - _FRAME", "used + widths[place] > width + 999", "a wide table is folded into its cells", "tests/evaluation/test_render.py::test_a_terminal_of_any_width_shows_every_cell_whole"),
    ("qvlm_lightning/results/next_steps.py", "if not own.exists() or (found is not None and Path(found).absolute() == own.absolute()):", "if found is not None:", "the next command calls the Python of the system", "tests/results/test_run_report.py::test_commands_can_be_pasted_whether_or_not_the_environment_is_activated"),
    ("qvlm_lightning/results/report.py", "rounded.name != answered.name", "rounded is not answered", "round-to-nearest is compared with itself", "tests/evaluation/test_report.py::test_round_to_nearest_read_from_its_file_is_not_compared_with_itself"),
    ("qvlm_lightning/results/report.py", "(name for name in answered.families if name)", "(name for name in answered.families)", "questions without a family are a family without a name", "tests/evaluation/test_report.py::test_questions_without_a_family_are_in_no_family"),
    ("qvlm_lightning/notebook.py", "@without_foreign_notes()\n", "", "a notebook shows adverts of other products", "tests/notebook/test_notebook.py::test_nothing_is_kept_unless_asked_for_and_no_foreign_note_is_heard"),
    ("qvlm_lightning/notebook.py", "callbacks += [CalibrationBar(),", "callbacks += [", "a notebook has two bars", "tests/notebook/test_notebook.py::test_nothing_is_kept_unless_asked_for_and_no_foreign_note_is_heard"),
]
# fmt: on

_FILES = "qvlm_lightning/files.py"
_CHECKPOINT = "qvlm_lightning/calibration/checkpoint.py"
_LOCK = "qvlm_lightning/run_lock.py"
_STOPPING = "qvlm_lightning/stopping.py"
_RANKS = "qvlm_lightning/ranks.py"
WRITER = "tests/test_files.py"
POINTS = "tests/calibration/test_checkpoint_files.py"
HELD = "tests/test_run_lock.py"
SIGNALS = "tests/test_stopping.py"
TOGETHER = "tests/test_ranks.py"
STOPPED = "tests/test_stopped_runs.py"
# fmt: off
STOPPING = [
    (_FILES, "            sync(scratch)\n            os.replace(scratch, path)", "            os.replace(scratch, path)", "a name is on the disk before what it names", f"{WRITER}::test_the_file_is_on_the_disk_before_its_name_is"),
    (_FILES, '            with contextlib.suppress(OSError):\n                scratch.unlink(missing_ok=True)\n', "", "a write that failed leaves its temporary file", f"{WRITER}::test_a_fault_leaves_the_old_file"),
    (_FILES, '    scratch = path.with_name(f".{path.name}.part")', '    scratch = Path(os.environ["TMPDIR"]) / path.name', "checkpoints go through the folder for temporary files", f"{POINTS}::test_nothing_goes_through_the_folder_for_temporary_files"),
    (_FILES, "            with contextlib.suppress(OSError):\n                _put_back(old, folder)\n", "", "an export that failed takes the older artifact along", f"{WRITER}::test_a_fault_leaves_the_old_folder"),
    (_FILES, "os.open(name, flags, MODE)", "os.open(name, flags, 0o600)", "nobody else may read what is written", f"{WRITER}::test_others_may_read_what_the_umask_allows"),
    (_CHECKPOINT, "(place == self._mine or is_whole(place))", "place.exists()", "a damaged checkpoint takes the place of the one before it", f"{POINTS}::test_a_damaged_one_does_not_take_the_place_of_the_one_before_it"),
    (_CHECKPOINT, "if scratch.read_bytes() != buffer.getbuffer():", "if not scratch.exists():", "a checkpoint is not read back", f"{POINTS}::test_what_is_read_back_wrongly_is_refused"),
    (_CHECKPOINT, "if (damaged := archive.testzip()) is not None:", "if (damaged := None) is not None:", "a flipped bit of a checkpoint is not seen", f"{POINTS}::test_a_damaged_one_is_named_and_the_one_before_it_taken"),
    (_CHECKPOINT, "for name in (LAST, PREVIOUS) if", "for name in (LAST,) if", "the checkpoint before the last is never taken", f"{POINTS}::test_the_one_before_is_enough"),
    ("callbacks/resume_point.py", "trainer.strategy.checkpoint_io = CheckpointFiles()", "pass", "checkpoints are written as Lightning does", "tests/callbacks/test_resume_point.py"),
    (_DECISIONS, 'if said["sha256"] != _digest(tensors):', 'if "sha256" not in said:', "a decision whose numbers were changed is taken over", f"{STORED}::test_a_file_that_was_changed_is_named_and_decided_again"),
    ("qvlm_lightning/evaluation/journal.py", "view = view[file.write(view) or 0 :]", "view = view[(file.write(view) or 0) * 0 + len(view) :]", "half an answer is stored", "tests/evaluation/test_journal.py::test_a_disk_that_fills_up_keeps_the_earlier_answers"),
    ("qvlm_lightning/results/predictions.py", "older.enter_context(stepping_aside(mark, tensors, texts))", "mark.unlink(missing_ok=True)", "a rename that fails takes the older answers along", "tests/evaluation/test_predictions.py::test_a_full_disk_leaves_the_older_answers"),
    ("qvlm_lightning/weights/exported.py", "if not folder.exists() and aside(folder).is_dir():", "if not folder.name:", "an artifact that a killed export put aside is not found", "tests/artifact/test_broken.py::test_what_a_killed_export_left_is_named"),
    (_LOCK, "fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "two processes work in one run folder", f"{HELD}::test_a_second_process_is_refused"),
    (_LOCK, 'if owner and owner.get("host") != me["host"]:', 'if not me["host"]:', "the run folder of another host is taken over", f"{HELD}::test_what_another_host_left_is_refused"),
    (_LOCK, "if (owner := _owner(path)) == me:", "if not (owner := _owner(path)):", "a table cannot calibrate in its own folder", f"{HELD}::test_the_same_process_may_take_it_again"),
    ("qvlm_lightning/evaluation/cli.py", "held.enter_context(run_lock(Path(cli.trainer.default_root_dir)))", "pass", "two evaluations write into one folder", f"{STOPPED}::test_a_folder_in_use_is_refused[eval]"),
    ("qvlm_lightning/commands/_table_run.py", "if calibration.folder == self.root:  # whose lock this process has", "if False:", "a headline is made by a process that has not the lock of the root", "tests/commands/test_table_processes.py::test_several_processes_make_the_same_table"),
    ("qvlm_lightning/commands/_table_processes.py", "each.result()", "pass", "a fault of a table's row is heard when its turn comes", "tests/commands/test_table_processes.py::test_a_fault_is_told_before_the_rows_in_front_of_it"),
    ("qvlm_lightning/commands/_table_processes.py", "str(input_error(fault))", "str(fault)", "the cause of a fault of a table's row is lost", "tests/commands/test_table_processes.py::test_what_a_process_says_is_the_fault"),
    ("qvlm_lightning/commands/_table_processes.py", "except SystemExit as fault:", "except ZeroDivisionError as fault:", "a refused calibration of a table says nothing", "tests/commands/test_table_processes.py::test_what_a_process_says_is_the_fault"),
    ("qvlm_lightning/commands/_table_processes.py", "if process not in others:", "if True:", "a table whose row failed ends processes of others", "tests/commands/test_table_processes.py::test_processes_of_others_live_on"),
    ("qvlm_lightning/commands/_table_processes.py", "torch.set_num_threads(threads)", "pass", "every row of a table made at once takes all cores", "tests/commands/test_table_processes.py::test_rows_share_the_cores"),
    ("qvlm_lightning/commands/_table_processes.py", "process.kill()", "pass", "a table whose row failed waits for the others", "tests/commands/test_table_processes.py::test_a_row_that_fails_ends_the_others"),
    ("qvlm_lightning/commands/_table_processes.py", "except BrokenProcessPool as fault:", "except ZeroDivisionError as fault:", "a killed process of a table is a traceback", "tests/commands/test_table_processes.py::test_a_process_that_is_killed_is_a_sentence"),
    ("qvlm_lightning/commands/_table_processes.py", "wait([parent.sentinel])", "threading.Event().wait()", "processes of a killed table go on", "tests/commands/test_table_processes.py::test_processes_end_with_the_one_that_started_them"),
    ("qvlm_lightning/commands/_leaderboard_estimate.py", 'int(about.get("processes", 1))', "1", "the estimate takes rows made at once for rows in turn", "tests/commands/test_leaderboard.py::test_a_row_that_was_made_beside_others_counts_its_share"),
    ("tools/joined/estimate.py", "torch.set_num_threads(max(1, threads // processes))", "pass", "the pilot reads with more threads than a row will have", "tests/joined/test_estimate.py::test_the_pilot_reads_with_the_threads_of_one_process"),
    ("qvlm_lightning/commands/_table_run.py", "with run_lock(self.root):", "if True:", "two processes make one table", "tests/commands/test_table.py::test_a_table_that_another_process_makes_is_left_alone"),
    (_STOPPING, "raise SystemExit(128 + stop.signum) from None", "raise SystemExit(0) from None", "a stopped program returns 0", f"{SIGNALS}::test_every_signal_is_one_sentence_and_its_exit_code"),
    (_STOPPING, "os._exit(128 + signum)", "os._exit(0)", "a program that had to be ended returns 0", f"{SIGNALS}::test_a_main_thread_that_does_not_get_out_is_ended"),
    (_STOPPING, "second = another in SIGNALS and", "second = another == 99 and", "a second signal changes nothing", f"{SIGNALS}::test_a_second_signal_ends_at_once"),
    (_STOPPING, "time.monotonic() > began + _SAME", "time.monotonic() > began", "a signal sent twice ends a program untidily", f"{SIGNALS}::test_the_same_signal_twice_in_a_moment_is_one"),
    (_STOPPING, "os.register_at_fork(after_in_child=lambda: _call(own))", "pass", "a worker that ends stops its program", f"{SIGNALS}::test_a_fork_does_not_stop_its_parent"),
    (_STOPPING, "if not follows():", "if True:", "ranks do not wait for rank 0", f"{SIGNALS}::test_a_process_that_follows_another_waits_for_it"),
    (_STOPPING, "and before is not signal.SIG_IGN", "", "a signal that nohup ignores stops a program", f"{SIGNALS}::test_a_signal_that_is_ignored_stays_ignored"),
    (_RANKS, "            child.kill()\n", "            pass\n", "a rank that dies leaves the others waiting", f"{TOGETHER}::test_a_rank_that_dies_takes_the_others_down"),
    (_RANKS, "signum == environment.requeue_signal", "signum > 0", "every signal puts a job into the queue again", f"{TOGETHER}::test_slurms_signal_requeues_as_the_plugin_says"),
    (_RANKS, 'if (per_node, nodes) != (devices, trainer["num_nodes"]) or', "if", "processes that SLURM did not start are waited for", f"{TOGETHER}::test_what_does_not_fit_is_one_sentence"),
    (_RANKS, "if (here, everywhere) != (devices, devices * nodes):", "if everywhere != devices * nodes:", "each process of torchrun calibrates for itself", f"{TOGETHER}::test_what_does_not_fit_is_one_sentence"),
    (_STOPPING, "words if words[-len(given) :] == given else []", "words", "the command of any parent goes on", f"{SIGNALS}::test_below_torchrun_its_command_goes_on"),
    (_STOPPING, "shlex.join(_torchrun() or sys.orig_argv)", "shlex.join(sys.orig_argv)", "one process of torchrun goes on alone", f"{SIGNALS}::test_below_torchrun_its_command_goes_on"),
    ("qvlm_lightning/cli.py", "if asked is None and begun and requeued():", "if asked is None and not begun and requeued():", "a job that is started again refuses its own folder", f"{STOPPED}::test_a_run_that_a_scheduler_starts_again_goes_on"),
    ("qvlm_lightning/cli.py", "if found is None and not begun:", "if found is None and root is None:", "a mistyped run folder starts a run", f"{STOPPED}::test_last_in_a_folder_without_a_run_says_so"),
    ("qvlm_lightning/notebook.py", "plugins=LightningEnvironment(),", "plugins=None,", "a notebook in a job asks for the job's processes", f"{STOPPED}::test_a_notebook_does_not_care_what_a_scheduler_says"),
    ("qvlm_lightning/commands/soak.py", "if found.get(name) != self.expected[name]", "if name not in found", "another artifact counts as survival", "tests/commands/test_soak.py::test_another_artifact_does_not_survive"),
]
# fmt: on

_STAGES = "tests/methods/test_stages.py"
_BALANCE = "tests/methods/test_modality_balance.py"
_SITE_STATISTICS = "qvlm_lightning/methods/site_statistics.py"
_TOKEN_WEIGHTS = "qvlm_lightning/methods/token_weights.py"
_MODALITY = "qvlm_lightning/calibration/modality_gradients.py"
IN_STATISTICS = f"{_STAGES}::test_token_weights_count_in_every_statistic"
GIVEN = f"{_STAGES}::test_what_is_given_lies_under_every_decision"
GIVEN_SITES = f"{_STAGES}::test_site_errors_are_those_of_the_given_weights"
BY_SAMPLE = f"{_BALANCE}::test_gradients_are_those_of_one_sample_after_another"
BALANCED = f"{_BALANCE}::test_a_search_measures_once_and_j_counts_with_the_ratio"
# fmt: off
STATISTICS = [
    (_SITE_STATISTICS, "rows if weight_N is None else rows * weight_N.float()[:, None]", "rows", "Gram matrices count all tokens the same", IN_STATISTICS),
    (_SITE_STATISTICS, "_add_product(self.cross, more_ND.float(), weighted)", "_add_product(self.cross, weighted, more_ND.float())", "the cross matrix is transposed", IN_STATISTICS),
    (_SITE_STATISTICS, "full.hidden.float() - own.hidden.float()", "full.hidden.float()", "the cross matrix is that of the full-precision inputs themselves", IN_STATISTICS),
    (_SITE_STATISTICS, "total_DD[some] += left_ND[:, some].T @ right_ND", "total_DD[:ROWS_AT_ONCE] += left_ND[:, some].T @ right_ND", "pieces of a Gram matrix land in one place", f"{_STAGES}::test_large_gram_matrices_are_added_in_pieces"),
    (_SITE_STATISTICS, "else (site.route.layer, site.route.role)", 'else (site.name, "")', "experts are passed one after another", f"{_STAGES}::test_experts_at_the_same_place_are_one_stage"),
    ("qvlm_lightning/nn/site_input.py", "x = output if quantized else args[0]", "x = args[0]", "statistics behind a quantizer are those before it", f"{_STAGES}::test_behind_the_quantizer_is_what_the_layers_read"),
    ("qvlm_lightning/nn/replay.py", "choice.shape[0], tensors)", "choice.shape[0])", "candidates do not see what is given", GIVEN),
    ("qvlm_lightning/methods/block_tensors.py", "self.given.tensors | decision.tensors", "decision.tensors", "a decision drops what is given", GIVEN),
    ("qvlm_lightning/methods/percentile.py", "given = placed(block.units[unit], block.given.tensors)", "given = placed(block.units[unit], {})", "sites are judged with weights from before the fold", GIVEN_SITES),
    ("qvlm_lightning/methods/site_chains.py", "run_full_precision(owner, h, call, block.given.tensors)", "run_full_precision(owner, h, call)", "targets of sites come from before the fold", GIVEN_SITES),
    (_TOKEN_WEIGHTS, 'size["vision"] / text if text', 'text / size["vision"] if text', "the modality ratio is upside down", f"{_BALANCE}::test_the_ratio_is_vision_by_text"),
    (_TOKEN_WEIGHTS, "_numberless(p) == _numberless(place)]", "p]", "the floor is the median of all modules", f"{_BALANCE}::test_the_floor_is_the_median_of_the_same_module_of_all_layers"),
    (_MODALITY, "loss = loss + nll / count.clamp_min(1)", "loss = loss + nll", "samples with long answers count more", BY_SAMPLE),
    (_MODALITY, "mean = (size_BT * mask).sum(dim=1) / count.clamp_min(1)", "mean = (size_BT * mask).sum(dim=1)", "gradients of a kind grow with its tokens", BY_SAMPLE),
    (_MODALITY, "float((count > 0).sum())", "float(len(count))", "samples without an image count as vision gradients of 0", BY_SAMPLE),
    ("qvlm_lightning/methods/block.py", "at or self.units[-1].name", "at or self.units[0].place", "J has no place of its own", BALANCED),
    ("qvlm_lightning/calibration/block_search.py", "block.gradients = self.state.gradients", "block.gradients = {}", "token weights see no gradients", BALANCED),
]
_GPTQ, _GPTQ_SWEEP, _RANGES_OF = "qvlm_lightning/methods/gptq.py", "qvlm_lightning/quant/gptq.py", "qvlm_lightning/quant/weight_ranges.py"
SLOW_GPTQ = "tests/quant/test_gptq.py::test_it_is_the_slow_reference"
GROUPS = "tests/quant/test_gptq.py::test_a_group_has_the_range_of_what_its_weight_has_become"
_GPTQ_TEST = "tests/methods/test_gptq.py"
_KEPT = "tests/methods/test_kept_work.py"
_REHEARSAL, _REHEARSAL_TEST = "qvlm_lightning/commands/_plan_rehearsal.py", "tests/commands/test_plan_rehearsal.py"
_COUNTS_FORETOLD = f"{_REHEARSAL_TEST}::test_layer_forwards_are_those_of_the_whole_calibration"
NEVER_WORSE = f"{_GPTQ_TEST}::test_no_layer_is_worse_than_rounding_to_the_nearest"
GPTQ = [
    (_GPTQ_SWEEP, "left_IO[end:] -= factor_II[start:end, end:].T @ errors_IO", "left_IO[end:] -= 0", "errors stay in their block of channels", SLOW_GPTQ),
    (_GPTQ_SWEEP, "left_IO[i + 1 : end] -= factor_II[i, i + 1 : end, None] * error", "left_IO[i] -= 0", "channels of a block do not make up for each other", SLOW_GPTQ),
    (_GPTQ_SWEEP, "group = places[i] // size", "group = i // size", "groups follow the order of rounding", SLOW_GPTQ),
    (_GPTQ_SWEEP, "hessian + damp * scale * eye", "hessian + 0 * damp * scale * eye", "nothing is damped", SLOW_GPTQ),
    (_GPTQ_SWEEP, "if end < i + size:", "if end > i + size:", "a group that reaches into the next block misses this one's errors", GROUPS),
    (_GPTQ_SWEEP, "mean if bool(mean > 0) else torch.ones_like(mean)", "mean", "layers without tokens have no factor", "tests/quant/test_gptq.py::test_channels_without_inputs_are_rounded_by_themselves"),
    (_RANGES_OF, "better = error_OG < best_OG", "better = error_OG > best_OG", "the range of the largest error is taken", "tests/quant/test_gptq.py::test_a_searched_range_has_the_least_error_of_all"),
    (_RANGES_OF, "quadratic_rows(part, gram_II[g * size : (g + 1) * size, g * size : (g + 1) * size])", "quadratic_rows(part, gram_II[:size, :size])", "all groups are judged by the first one's inputs", "tests/quant/test_gptq.py::test_a_searched_range_has_the_least_error_of_all"),
    (_RANGES_OF, "products += 2 * (rows_OI", "products += 1 * (rows_OI", "what two channels add counts once", "tests/quant/test_gptq.py::test_half_of_the_products_make_the_whole_error"),
    (_RANGES_OF, "num_bits, symmetric, dtype or weight_OI.dtype", "num_bits, symmetric, weight_OI.dtype", "weights are rounded with a scale that the model has not", "tests/quant/test_gptq.py::test_rounded_weights_are_those_of_the_models_type"),
    (_GPTQ, "torch.lt(*reversed(list(errors)))", "torch.gt(*reversed(list(errors)))", "the worse of two rows is kept", NEVER_WORSE),
    (_GPTQ, "low=torch.where(near_O[:, None, None], minmax.low, grid.low)", "low=grid.low", "rows of nearest values have another range", NEVER_WORSE),
    (_GPTQ, "(weight_OI.double() @ known.cross)[:, order] @ factor.T @ factor", "(weight_OI.double() @ known.cross.T)[:, order] @ factor.T @ factor", "asymmetric inputs come the wrong way round", f"{_GPTQ_TEST}::test_the_wanted_weight_is_the_least_squares_answer"),
    (_GPTQ, "decision = self.ranges.solve(block)", "decision = Decision(scores=self.ranges.solve(block).scores)", "ranges of activations are not kept", f"{_GPTQ_TEST}::test_every_layer_is_on_its_grid"),
    (_GPTQ, "if own.active:", "if True:", "layers at 16 bits are rounded", f"{_GPTQ_TEST}::test_layers_that_overrides_leave_alone_stay"),
    (_GPTQ, "kind = own.num_bits, own.group_size, own.symmetric, linear.weight.dtype", "kind = (own.group_size,)", "layers of other widths are rounded on one grid", f"{_GPTQ_TEST}::test_layers_of_a_site_are_rounded_as_each_by_itself"),
    (_GPTQ, "*(x.clone() for x in part)", "*part", "a file would hold one tensor within another", f"{_GPTQ_TEST}::test_layers_of_a_site_are_rounded_as_each_by_itself"),
    (_BLOCK, "if not all(x is y and v == w >= 0 for (x, v), (y, w) in pairs):", "if not all(x is y for (x, _), (y, _) in pairs):", "a tensor that was changed in place is not judged again", f"{_KEPT}::test_anything_that_changes_j_is_noticed"),
    (_BLOCK, "alike and (self.widths, self.objective) == (other.widths, other.objective)", "alike", "J of another objective is taken", f"{_KEPT}::test_anything_that_changes_j_is_noticed"),
    ("qvlm_lightning/methods/block.py", "inputs + weights, block.objective", "inputs, block.objective", "an error of rounded weights is taken for that of exact ones", "tests/methods/test_z_fold.py"),
    (_BLOCK, "alike = type(mine) is type(its) and vars(mine) == vars(its)", "alike = True", "J of other token weights is taken", f"{_KEPT}::test_anything_that_changes_j_is_noticed"),
    (_BLOCK, "[min(asked, key=lambda one: one.error)]", "[max(asked, key=lambda one: one.error)]", "the worse decision is kept", f"{_KEPT}::test_what_was_judged_last_is_not_run_again"),
    (_REHEARSAL, 'workload.pairs if method.pairs == "all" else workload.search_pairs', "workload.search_pairs", "all pairs are taken for those of the search", f"{_REHEARSAL_TEST}::test_a_method_that_uses_all_pairs_takes_longer_than_one_that_searches_on_some"),
    (_REHEARSAL, "layers.get(name, 0) / rehearsed[name]", "1.0", "one block is taken for all layers", _COUNTS_FORETOLD),
    (_REHEARSAL, "max(0.0, two - one) * (count - 1)", "(two - one) * (count - 1)", "more batches are said to take less", f"{_REHEARSAL_TEST}::test_a_line_does_not_fall"),
    ("qvlm_lightning/commands/_plan_measured.py", "calibrator.prepare(named.method)", "pass", "a rehearsal leaves out what is done first", f"{_REHEARSAL_TEST}::test_the_model_is_prepared"),
    (_REPLAY, "held[\"forward\"] = nothing", "stack.callback(unit.module.register_forward_hook(after).remove)", "all units of a tower run to see how they are called", "tests/nn/test_replay.py::test_units_behind_the_first_do_not_compute"),
    (_REPLAY, "return torch.zeros_like(output)", "return output.zero_()", "what the model adds to one output is in all", "tests/nn/test_replay.py::test_an_output_that_the_model_changes_in_place_is_no_ones_else"),
    (_LINEAR, "self._fake_quantized_weight(), decided)", "self._fake_quantized_weight(), [])", "a weight is taken for one that is gone", f"{_KEPT}::test_kept_weights_are_those_of_the_decision_that_runs"),
    ("qvlm_lightning/methods/block_tensors.py", "known[1] != value._version", "False", "a rounded tensor of an old value is taken", f"{_KEPT}::test_a_rounded_tensor_is_the_same_until_its_value_changes"),
    ("qvlm_lightning/calibration/module.py", "method.check(self.scheme)", "method.settings()", "a scheme is refused by nobody", f"{_GPTQ_TEST}::test_a_module_refuses_a_scheme_before_a_model_is_read"),
]
_ATTENTION_STATISTICS, _AESPA = "qvlm_lightning/methods/attention_statistics.py", "qvlm_lightning/methods/aespa.py"
_ROUNDING, _QUADRATIC, _HESSIAN = "qvlm_lightning/quant/rounding.py", "qvlm_lightning/quant/quadratic.py", "qvlm_lightning/quant/hessian_ranges.py"
_AESPA_TEST, _ROUNDING_TEST = "tests/methods/test_aespa.py", "tests/quant/test_rounding.py"
_OF_FAMILIES = "tests/models/test_attention_of_families.py::test_values_queries_and_keys_of_every_family"
ONE_QUERY = f"{_AESPA_TEST}::test_for_one_query_the_form_is_the_change_of_its_scores_and_bounds_the_outputs"
LEARNED = f"{_ROUNDING_TEST}::test_learned_roundings_are_steps_below_or_above_and_gain"
OTHER_FORM = f"{_AESPA_TEST}::test_an_attention_of_another_form_is_said_and_rounded_like_other_layers"
AESPA = [
    (_ATTENTION_STATISTICS, "weighted = averages * weight[:, None, None]", "weighted = averages", "outputs of padding count in the form of values", f"{_OF_FAMILIES}[moe_llava-language]"),
    (_ATTENTION_STATISTICS, "repeat_interleave(group, dim=1)", "repeat(1, group, 1, 1)", "query heads are judged by other heads' keys", ONE_QUERY),
    (_ATTENTION_STATISTICS, "_add_products(sums.queries, slopes, attention.q, tokens.weight)", "_add_products(sums.queries, slopes, attention.q, tokens.value)", "queries count all tokens the same", ONE_QUERY),
    (_ATTENTION_STATISTICS, "_add_products(sums.keys, slopes, attention.k, tokens.value)", "_add_products(sums.keys, slopes, attention.k, tokens.weight)", "keys count by the weight of queries", ONE_QUERY),
    ("qvlm_lightning/nn/weight_quantizer.py", "        quantizer.num_bits = OFF\n", "        quantizer.num_bits = OFF - 14\n", "an attention is measured with rounded projections", f"{_OF_FAMILIES}[moe_llava-language]"),
    (_ATTENTION_STATISTICS, "key_N = torch.maximum(", "torch.maximum(", "stored sink tokens are no keys", f"{_AESPA_TEST}::test_sinks_are_keys_but_count_in_nothing_else[prefix]"),
    (_ATTENTION_STATISTICS, "sizes = [call.query.shape[0] * call.query.shape[2] for call in calls]", "sizes = [call.query.shape[2] * call.query.shape[0] for call in calls][::-1]", "tokens of packed images are taken for another image's", f"{_OF_FAMILIES}[qwen2_vl-vision]"),
    ("qvlm_lightning/nn/attention_calls.py", "heads = slice(head * group, (head + 1) * group)", "heads = slice(head, head + group)", "values are averaged by other heads", f"{_OF_FAMILIES}[qwen2_5_vl-language]"),
    ("qvlm_lightning/calibration/block_search.py", "if (attention := self.family.attention(unit.module)) is not None", "if (attention := self.family.attention(unit.module)) is None", "no attention is known to a block", OTHER_FORM),
    (_AESPA, 'name = f"{self.name}_layerwise"', "name = self.name", "nobody says that an attention is not known", OTHER_FORM),
    (_AESPA, "dtype=torch.bool) if least is None else error_PR < least", "dtype=torch.bool) if least is None else error_PR > least", "the worst of what was tried is kept", f"{_AESPA_TEST}::test_no_head_and_no_row_is_worse_than_rounding_to_the_nearest"),
    (_ROUNDING, "slope.mul_(clipped == value).mul_(", "slope.mul_(", "clipped weights go on learning", f"{_ROUNDING_TEST}::test_slopes_are_those_of_autograd"),
    (_ROUNDING, ".mul_(-2 * beta)", ".mul_(2 * beta)", "roundings are driven to the middle", f"{_ROUNDING_TEST}::test_slopes_are_those_of_autograd"),
    (_ROUNDING, "(errors[0] < errors[1])[:, None, None]", "(errors[0] > errors[1])[:, None, None]", "learned roundings are kept where they are worse", LEARNED),
    (_ROUNDING, "size, target = steps.scale / unit, wanted / unit", "size, target = steps.scale / unit, start_PRI.float() / unit", "a swept weight is what learning aims at", f"{_ROUNDING_TEST}::test_what_was_started_from_is_not_what_is_wanted"),
    (_QUADRATIC, "else self.outputs @ product", "else product", "rows of a head do not meet", f"{_ROUNDING_TEST}::test_the_quadratic_form_is_a_trace_part_by_part"),
    (_HESSIAN, "torch.cat([place.floor(), place.ceil()])", "torch.cat([place.floor(), place.floor()])", "zero points are rounded down only", f"{_ROUNDING_TEST}::test_a_range_is_the_best_of_its_candidates"),
    (_HESSIAN, "better_OG1 = (error_OG < least_OG)", "better_OG1 = (error_OG > least_OG)", "a range that is worse than minimum and maximum is taken", f"{_ROUNDING_TEST}::test_a_range_is_the_best_of_its_candidates"),
    (_GPTQ_SWEEP, "done + error * factor.diagonal()", "done + error", "what a sweep rounded is misjudged", f"{_ROUNDING_TEST}::test_what_a_sweep_rounded_is_known_from_its_result"),
]
_SCALING, _FOLD_GROUPS, _SCALE_SEARCH = "qvlm_lightning/methods/scaling.py", "qvlm_lightning/methods/fold_groups.py", "qvlm_lightning/methods/scale_search.py"
_FOLD_TEST = "tests/methods/test_fold_search.py"
FOLD_LOOP = f"{_FOLD_TEST}::test_the_error_of_a_scale_is_that_of_a_loop"
IS_AWQ = f"{_FOLD_TEST}::test_mbq_with_equal_weights_and_squares_is_awq"
FOLDS = [
    (_SCALING, "_range(low_D / factor_D, high_D / factor_D, like)", "_range(low_D, high_D, like)", "static ranges of a fold are those from before it", FOLD_LOOP),
    (_FOLD_GROUPS, "x.pow(power).sum(dim=-1)", "x.pow(2).sum(dim=-1)", "the error is always squared", FOLD_LOOP),
    (_FOLD_GROUPS, "by_token.reshape(weight.shape) * weight", "by_token.reshape(weight.shape) * (weight > 0)", "scales are judged by all tokens alike", FOLD_LOOP),
    (_FOLD_GROUPS, "placed(unit, tensors), _only(unit, group.sites)", "placed(unit, tensors), _only(unit, unit.sites)", "other layers are quantized while a scale is judged", FOLD_LOOP),
    (_FOLD_GROUPS, "    if outside:\n                        args", "    if not outside:\n                        args", "inputs are not divided while a scale is judged", FOLD_LOOP),
    (_FOLD_GROUPS, "or stores_output(block, site) or", "or", "values that sinks store are folded", f"{_FOLD_TEST}::test_values_that_sinks_store_are_not_folded"),
    (_FOLD_GROUPS, "setdefault((source.name, source.rows), [])", "setdefault((site.name, source.rows), [])", "experts that read one norm are scaled apart", f"{_FOLD_TEST}::test_experts_are_scaled_together"),
    (_SCALE_SEARCH, "index = best(errors)", "index = best(-errors)", "the worst scale is taken", f"{_FOLD_TEST}::test_the_best_of_the_candidates_is_taken"),
    (_SCALE_SEARCH, "factors_CS / (least * most).sqrt()", "factors_CS / most", "scales are not balanced around 1", f"{_FOLD_TEST}::test_candidates_are_powers_of_the_magnitude"),
    ("qvlm_lightning/methods/mbq.py", "super().__init__(inputs, power, False, objective, weights)", "super().__init__(inputs, 2.0, False, objective, weights)", "MBQ has another error than it says", f"{_FOLD_TEST}::test_mbq_keeps_its_power_and_balance"),
    ("qvlm_lightning/methods/mbq.py", "ModalityBalance() if token_weights is None else token_weights", "token_weights", "MBQ weighs all tokens alike", f"{_FOLD_TEST}::test_mbq_keeps_its_power_and_balance"),
]
_ROTATION, _ONLINE = "qvlm_lightning/methods/rotation.py", "qvlm_lightning/nn/online_transform.py"
_LEARNED, _LOOP = "qvlm_lightning/methods/learned_transforms.py", "qvlm_lightning/methods/block_learning.py"
_ROTATED = "tests/models/test_rotated_families.py::test_a_rotated_model_computes_the_same[llava-needed]"
_ROTATION_TEST = "tests/methods/test_rotation.py"
_OBSERVED, _OBSERVED_TEST = "qvlm_lightning/methods/observed_ranges.py", "tests/methods/test_observed_ranges.py"
_ONLINE_TEST = "tests/nn/test_online_transform.py"
IN_ARTIFACT = f"{_ROTATION_TEST}::test_an_artifact_is_the_calibrated_model"
ROTATIONS = [
    ("qvlm_lightning/quant/hadamard.py", "character[(place[:, None] - place[None, :]) % prime]", "character[(place[:, None] + place[None, :]) % prime]", "matrices of Paley are not orthogonal", "tests/quant/test_hadamard.py::test_entries_have_one_size_and_rows_are_orthogonal"),
    ("qvlm_lightning/quant/hadamard.py", "return min(both or known, key=sum)", "return max(both or known, key=sum)", "an online rotation costs more than it has to", "tests/quant/test_hadamard.py::test_factors_by_hand"),
    ("qvlm_lightning/nn/head_rotation.py", "part = (turn.T @ heads)", "part = (turn @ heads)", "values are turned the other way than the output", f"{_ROTATION_TEST}::test_values_of_grouped_heads_are_rotated"),
    ("qvlm_lightning/nn/head_rotation.py", 'for own in ("weight", "bias"):', 'for own in ("weight",):', "the bias of values is not rotated", f"{_ROTATION_TEST}::test_values_of_grouped_heads_are_rotated"),
    (_ONLINE, "parts = parts @ self.right", "parts = parts @ self.right.T", "the right factor is transposed", f"{_ONLINE_TEST}::test_the_input_is_multiplied_by_the_product"),
    (_ONLINE, "return (left_T.T @ parts @ right_T)", "return (left_T @ parts @ right_T)", "the weight holds another inverse", f"{_ONLINE_TEST}::test_the_inverse_goes_into_the_weight_and_comes_out_again"),
    (_ONLINE, "version_key(x, self.left, self.right)", "version_key(x)", "an output of other factors is taken", f"{_ONLINE_TEST}::test_another_input_or_factor_is_not_taken_for_the_kept_one"),
    ("qvlm_lightning/nn/structure.py", "linear.register_forward_pre_hook(transform.before)", "pass", "transforms do not run", f"{_ONLINE_TEST}::test_a_site_computes_what_it_did"),
    ("qvlm_lightning/nn/structure.py", "            self.leader.input_transform.forget()", "            pass", "a kept output survives other tensors", f"{_ONLINE_TEST}::test_another_input_or_factor_is_not_taken_for_the_kept_one"),
    (_ROTATION, "    parameters.replace({name: partial(_against, fixed, tensors, name) for name in names})\n", "", "weights are not those of rotated inputs", _ROTATED),
    (_ROTATION, "return {s.name for s in structure.sites if readers.issuperset(s.linears)}", "return {s.name for s in structure.sites}", "sites that nothing reaches are left alone", f"{_ROTATION_TEST}::test_only_sites_that_nothing_reaches_get_an_online_rotation"),
    (_ROTATION, "active = site.quantizer.num_bits < OFF", "active = True", "inputs that are not quantized are rotated", f"{_ROTATION_TEST}::test_only_sites_that_nothing_reaches_get_an_online_rotation"),
    ("qvlm_lightning/calibration/calibrator.py", "            method.prepare(Parameters(self.model, stored), self.family, self.structure)", "            pass", "no method prepares a model", f"{_ROTATION_TEST}::test_only_sites_that_nothing_reaches_get_an_online_rotation"),
    ("qvlm_lightning/calibration/block_search.py", "            if not mixed.intersection(source.under(unit.name).readers)\n", "", "channels are scaled that a transform has mixed", f"{_ROTATION_TEST}::test_a_fold_leaves_a_site_alone_whose_channels_are_mixed"),
    ("qvlm_lightning/artifact/loading.py", "    put_transforms(structure, weights, folder)\n", "", "an artifact with transforms does not load", IN_ARTIFACT),
    ("qvlm_lightning/methods/chain.py", "            step.prepare(parameters, family, structure)", "            pass", "a chain prepares nothing", IN_ARTIFACT),
    (_LOOP, "stepper.step()", "pass", "nothing is learned", f"{_ROTATION_TEST}::test_learning_lowers_j_and_never_ends_above_its_start"),
    (_LOOP, "parameter -= group", "parameter += group", "rounding climbs", f"{_ROTATION_TEST}::test_learning_lowers_j_and_never_ends_above_its_start"),
    (_OBSERVED, "best = int(all_sum(errors[site.name]).argmin())", "best = int(all_sum(errors[site.name]).argmax())", "an observed range is that of the largest error", f"{_OBSERVED_TEST}::test_every_range_has_the_least_error_of_its_candidates"),
    (_OBSERVED, "tables = self._tables(block, sites, decision)", "tables = self._tables(block, sites, Decision())", "candidates are those of inputs in front of quantized sites", f"{_OBSERVED_TEST}::test_every_range_has_the_least_error_of_its_candidates"),
    (_ROTATION, 'quantized = widths(scheme, "activation_bits") != {OFF}', "quantized = False", "a target gets transforms that it cannot hold", f"{_ROTATION_TEST}::test_a_target_without_a_place_for_transforms_is_refused"),
    ("qvlm_lightning/exits.py", "        if not (isinstance(value, OSError) and value.errno in REASONS):\n            before(fault)", "        before(fault)", "a writer's thread prints a traceback", "tests/test_main.py::test_a_thread_that_cannot_write_prints_no_traceback"),
]
_PREPARED, _STREAMED_ROTATION = "qvlm_lightning/weights/prepared.py", "tests/methods/test_rotation_streamed.py"
_IN_FILE = f"{_STREAMED_ROTATION}::test_a_file_has_the_weights_until_the_run_ends"
_LEFT = f"{_STREAMED_ROTATION}::test_a_stopped_run_leaves_the_file_and_one_that_ends_does_not"
_ROOM = f"{_STREAMED_ROTATION}::test_a_disk_without_room_is_refused_before_the_work"
_OTHER_FILE = f"{_STREAMED_ROTATION}::test_a_resumed_run_takes_the_file_unless_it_is_of_another"
_REPLACED = "tests/nn/test_streamed.py::test_a_replaced_parameter_is_made_and_tied_to_no_other"
STREAMED_ROTATIONS = [
    (_PREPARED, "partial(_made_or_read, dict(self.weights.makers), self.weights)", "partial(_made_or_read, {}, self.weights)", "a streamed weight is only rotated the last way", _IN_FILE),
    (_PREPARED, "return as_stored({name: make()}, self.stored)[name]", "return make()", "streamed weights are finer than those that will be stored", f"{_STREAMED_ROTATION}::test_the_artifact_is_that_of_the_model_in_memory[plus_fast]"),
    (_PREPARED, '.get("key") == self.key', '.get("key") is not None', "a resumed run takes the weights of another", _OTHER_FILE),
    (_PREPARED, "if self.nbytes > free and not self.is_whole():", "if self.nbytes > free:", "a run whose weights are on the disk is refused for want of room", _ROOM),
    (_PREPARED, "        self.weights.ready = None", "        pass", "weights are read from a file that is gone", _IN_FILE),
    ("qvlm_lightning/calibration/calibrator.py", "            self.prepared.open()", "            pass", "weights are rotated in every pass", _IN_FILE),
    ("qvlm_lightning/calibration/calibrator.py", "            self.prepared.check_space()", "            pass", "a full disk shows in the middle of the work", _ROOM),
    ("qvlm_lightning/calibration/calibrator.py", "self.scheme.identity(), method.settings()]", "self.scheme.identity()]", "rotations of another seed are taken over", _OTHER_FILE),
    ("qvlm_lightning/calibration/module.py", "            self._built().finish()", "            pass", "a run that ended leaves its scratch file", _LEFT),
    ("qvlm_lightning/calibration/module.py", "if self.trainer.current_epoch > self.epochs:", "if self.trainer.current_epoch > self.epochs + 1:", "the final epoch does not end a run", _LEFT),
    (_PARAMETERS, "[o for o in names if o not in makers]", "names", "an untied head is that of the embeddings", _REPLACED),
    (_PARAMETERS, "if n not in makers}", "}", "kept weights are those from before a rotation", _REPLACED),
    (_CHANGES, "if own in owner._buffers and not isinstance(decided, Tensor):", "if False:", "a streamed transform stays where full precision is asked for", f"{_SWITCH}::test_a_buffer_of_a_model_without_weights_is_put_in_place_like_a_weight"),
    (_ROTATION, "fixed = deepcopy(transform).cpu()", "fixed = transform", "weights follow a transform that is learned later", _IN_FILE),
]
_ADAROUND, _ADAROUND_TEST = "qvlm_lightning/methods/adaround.py", "tests/methods/test_adaround.py"
_PENALTY = f"{_ADAROUND_TEST}::test_the_penalty_is_that_of_a_loop"
_NOT_YET = f"{_ADAROUND_TEST}::test_before_the_first_step_nothing_is_rounded"
ADAROUND = [
    (_ADAROUND, "(annealing.weight / count)", "annealing.weight", "the regularizer grows with the weights", _PENALTY),
    (_ADAROUND, "if beta is None or not count:", "if not count:\n                beta = beta or 2.0", "roundings are driven from the start", _PENALTY),
    (_ADAROUND, "free_variable(steps - self.down[name])", "free_variable(torch.full_like(steps, 0.5))", "learning starts from the middle of every step", _NOT_YET),
    (_ADAROUND, 'if f"{place}.low" in block.given.tensors:', "if False:", "ranges that a chain has decided are dropped", f"{_ADAROUND_TEST}::test_ranges_that_a_chain_has_decided_are_kept"),
    (_ADAROUND, "(free >= 0).float()", "(free < 0).float()", "every weight is rounded the other way", f"{_ADAROUND_TEST}::test_every_weight_becomes_the_value_below_or_above"),
    (_ADAROUND, "penalty=penalty, falling=False", "penalty=penalty", "steps vanish before roundings are decided", f"{_ADAROUND_TEST}::test_the_regularizer_decides_the_shares"),
    (_LOOP, "loss = loss + penalty(step).to(loss)", "pass", "a penalty does not count", f"{_ADAROUND_TEST}::test_the_regularizer_decides_the_shares"),
]
_BALANCED_TEST = "tests/methods/test_balanced_methods.py"
_AT_MODULES = f"{_BALANCED_TEST}::test_a_balance_is_the_ratio_at_the_output_of_each_module"
BALANCES = [
    ("qvlm_lightning/methods/range_rules.py", "weight, errors = block.weight(batch, seen.mask, block.place(site)), []", "weight, errors = block.weight(batch, seen.mask), []", "least squares weigh a site as the block's output", f"{_AT_MODULES}[least_squares]"),
    (_OBSERVED, "weight = block.weight(batch, own.mask, block.place(site))", "weight = block.weight(batch, own.mask)", "observed ranges weigh a site as the block's output", f"{_AT_MODULES}[observed]"),
    (_SITE_STATISTICS, "weight = block.weight(batch, mask, block.place(site)) if weighted else mask", "weight = block.weight(batch, mask) if weighted else mask", "sums weigh a site as the block's output", f"{_AT_MODULES}[gptq]"),
    ("qvlm_lightning/methods/requirements.py", "not isinstance(ranges.token_weights, Uniform)", "False", "token weights of ranges are passed over in silence", f"{_BALANCED_TEST}::test_token_weights_of_nested_ranges_are_refused"),
    ("qvlm_lightning/calibration/checks.py", "        check_answers(batches)\n", "        pass\n", "missing answers show after the statistics", f"{_BALANCED_TEST}::test_a_balance_without_answers_is_refused_before_statistics"),
]
_ZFOLD, _ZFOLD_TEST = "qvlm_lightning/quant/z_fold.py", "tests/quant/test_z_fold.py"
ZFOLDS = [
    (_ZFOLD, "self.gram * z_C * z_C[:, None]", "self.gram", "folded weights are judged on inputs from before the fold", f"{_ZFOLD_TEST}::test_a_folded_weight_is_rounded_for_its_folded_inputs"),
    (_ZFOLD, "        if not error < least:\n            break\n", "", "scales that are worse are taken", f"{_ZFOLD_TEST}::test_scales_that_are_worse_are_not_taken"),
    (_ZFOLD, "squares.index_add_(0, layer.channels, own.square().sum(dim=0))", "squares.index_add_(0, layer.channels, own.abs().sum(dim=0))", "scales are no least squares answer", f"{_ZFOLD_TEST}::test_one_round_is_the_least_squares_answer"),
    (_ZFOLD, "torch.where(fits, products / torch.where(fits, squares, 1.0), before_S)", "products / squares.clamp_min(1e-12)", "a channel that is rounded away gets a scale of 0", f"{_ZFOLD_TEST}::test_a_channel_that_is_rounded_to_nothing_keeps_its_scale"),
    ("qvlm_lightning/methods/z_fold.py", "1 / channel_scales(", "channel_scales(", "the fold goes the other way", "tests/methods/test_z_fold.py::test_factors_are_those_that_the_form_asks_for"),
]
_RPTQ, _RPTQ_TEST = "qvlm_lightning/methods/rptq.py", "tests/methods/test_rptq.py"
_HOLDS = f"{_RPTQ_TEST}::test_a_range_holds_all_of_its_cluster_and_no_more"
RPTQ = [
    ("qvlm_lightning/quant/clusters.py", "sums / size.clamp_min(1), centers)", "centers, centers)", "centers of clusters stay where they start", "tests/quant/test_clusters.py::test_means_move_until_every_point_is_with_the_nearest"),
    ("qvlm_lightning/quant/clusters.py", "torch.minimum(away, (points - chosen[-1]).norm(dim=1))", "(points - chosen[-1]).norm(dim=1)", "centers of clusters start twice at one point", "tests/quant/test_clusters.py::test_as_many_clusters_as_points_leave_all_apart"),
    (_RPTQ, 'low.flatten(), "amin")', 'low.flatten(), "amax")', "a cluster's range leaves some of it out", _HOLDS),
    (_RPTQ, "shared_ranges(low, high, self.clusters)", "shared_ranges(low, high, 1)", "all channels share one range", _HOLDS),
    ("qvlm_lightning/methods/requirements.py", "        ranges.check(scheme)\n", "        return\n", "a method's ranges are not asked whether the scheme suits them", f"{_RPTQ_TEST}::test_other_ranges_than_of_channels_are_refused"),
]
_CT = "qvlm_lightning/export/compressed_tensors.py"
_CONFIG = "qvlm_lightning/export/compressed_config.py"
_LAYERS = "qvlm_lightning/export/layers.py"
_PATTERNS = "qvlm_lightning/export/patterns.py"
_GGUF = "qvlm_lightning/export/gguf.py"
_BASE = "qvlm_lightning/export/gguf_base.py"
_CT_TEST = "tests/export/test_compressed_tensors.py"
_LAYOUT, _LAYOUT_TEST = "qvlm_lightning/artifact/compressed.py", "tests/export/test_artifact_layout.py"
_SAME = f"{_CT_TEST}::test_transformers_computes_what_the_simulated_model_does"
_GGUF_TEST = "tests/export/test_gguf.py"
_EXACT = f"{_GGUF_TEST}::test_every_layer_is_code_times_scale_to_the_bit"
_TARGETS = "tests/quant/test_targets.py"
EXPORT = [
    (_LAYERS, "return (codes - self._shift).to(torch.int8)", "return (codes - self._shift - 1).to(torch.int8)", "exported codes are one too small", f"{_EXACT}[grouped-4-True-32-Q4_0]"),
    (_LAYERS, "return scale, (zero_point - self._shift).to(torch.int8)", "return scale, zero_point.to(torch.int8)", "exported zero points are those of unsigned codes", f"{_EXACT}[grouped-4-False-None-Q5_0]"),
    (_LAYERS, "shifted = zero_point - 2 ** (site.num_bits - 1)", "shifted = zero_point * 0", "an exported static range has no zero point", f"{_CT_TEST}::test_static_ranges_differ_at_ties_only[True]"),
    (_LAYERS, "if not (bool((high == 1).all()) and bool((low == -1).all())):", "if False:", "clip ratios of tokens are exported as none", f"{_CT_TEST}::test_clipped_tokens_are_refused"),
    (_LAYERS, "odd = sorted(more - _OWN_CHILDREN)", "odd = sorted(more & {'other'})", "what runs beside a layer is left out of the export", f"{_CT_TEST}::test_what_a_layer_does_beside_is_refused"),
    (_CONFIG, 'found["dequantize"] = True', 'found["dequantize"] = False', "transformers finds no place for packed zero points", f"{_SAME}[w4a16 asymmetric]"),
    (_CONFIG, '"ignore": told_apart([name for name in linear if name not in quantized]),', '"ignore": [name for name in linear if name not in quantized],', "layers left alone are named as a list", "tests/export/test_compressed_tensors.py::test_layers_left_alone_are_left_alone_under_both_namings"),
    (_LAYOUT, "_as_words(pack_codes(zeros.T, bits)).T.contiguous() if packed", "_as_words(pack_codes(zeros.T.flip(0), bits)).T.contiguous() if packed", "zero points of groups change places", f"{_LAYOUT_TEST}::test_words_are_those_of_compressed_tensors[5-24-3-4]"),
    (_LAYOUT, "(codes.to(torch.int16) - 2 ** (bits - 1))", "(codes.to(torch.int16) - 2 ** bits // 4)", "codes in bytes are not around zero", f"{_LAYOUT_TEST}::test_words_are_those_of_compressed_tensors[5-24-3-4]"),
    (_LAYOUT, "if entry is None or (entry.dtype, entry.shape) != kind:", "if entry is None:", "words of another shape are read", f"{_LAYOUT_TEST}::test_tensors_that_cannot_be_are_refused"),
    ("qvlm_lightning/weights/exported.py", 'return "quantizers.stored" if', 'return "quantizers.safetensors" if', "vLLM reads quantizers as weights", f"{_LAYOUT_TEST}::test_vllm_finds_no_other_tensors"),
    ("qvlm_lightning/artifact/loading.py", "if packed or told:", "if packed:", "what is saved of an artifact that others load is not one", f"{_LAYOUT_TEST}::test_a_copy_is_saved_of_either_form"),
    ("qvlm_lightning/calibration/checks.py", "            check_model(model)\n", "            pass\n", "a model that others lack is calibrated for them", f"{_LAYOUT_TEST}::test_a_model_that_others_lack_is_refused_before_calibration"),
    (_PATTERNS, "fitting = (p for p in _candidates(left[0]) if not _in(p, others))", "fitting = (p for p in _candidates(left[0]))", "a pattern matches layers of the other kind", "tests/export/test_patterns.py::test_patterns_written_out_by_hand"),
    (_GGUF, "rows = base.stored(name, steps).numpy(), base.stored(name, scale).float().numpy()", "rows = base.stored(name, steps).numpy(), scale.float().numpy()", "scales of queries and keys stay where they were", f"{_EXACT}[grouped-4-True-32-Q4_0]"),
    (_GGUF, "steps = layer.codes().short() - zero_point.short().repeat_interleave(each, dim=1)", "steps = layer.codes().short()", "zero points are left out of blocks", f"{_EXACT}[grouped-6-False-64-Q8_0]"),
    (_GGUF, 'if told in ("token_embd.weight", "output.weight") and not base.holds(told, made):', "if False:", "the base of another model is taken", f"{_GGUF_TEST}::test_a_base_of_another_model"),
    (_BASE, 'return queries if layer.endswith("q_proj") else int(keys)', "return queries", "rows of shared key heads are moved as if they were not shared", f"{_EXACT}[grouped-4-True-32-Q4_0]"),
    ("qvlm_lightning/export/gguf_blocks.py", "reach = bits if symmetric else bits + 1", "reach = bits", "asymmetric codes do not fit their block", f"{_GGUF_TEST}::test_a_block_type_holds_all_codes_minus_zero_points"),
    ("qvlm_lightning/nn/surgery.py", 'half_scales = scheme.target == "gguf" and part == "language"', "half_scales = False", "scales for gguf are not rounded before codes", f"{_TARGETS}::test_only_the_decoder_of_gguf_has_them"),
    (_WEIGHTS, "return low + (low_OG1 - low_OG1.detach()), high + (high_OG1 - high_OG1.detach())", "return low, high", "clip ratios learn nothing behind scales in float16", f"{_TARGETS}::test_clip_ratios_learn_through_half_ranges"),
    ("qvlm_lightning/nn/surgery.py", "check_layer(scheme, part, full, widths[full], group, plain[name].in_features)", "pass", "a layer that the target cannot hold is found after the calibration", f"{_TARGETS}::test_a_single_layer_is_looked_at_in_the_model"),
]
_PACKING, _PACKED_INPUT = "qvlm_lightning/nn/packing.py", "qvlm_lightning/nn/packed_input.py"
_PACKED, _KERNELS = "qvlm_lightning/nn/packed_linear.py", "qvlm_lightning/kernels"
_PACKING_TEST, _PACKED_TEST = "tests/nn/test_packing.py", "tests/nn/test_packed_linear.py"
_DECODING = "tests/kernels/test_decoding.py"
_PACKED_SITE, _SITE_TEST = "qvlm_lightning/nn/packed_site.py", "tests/nn/test_packed_site.py"
_ROUNDED = "tests/kernels/test_rounded.py"
_KERNEL_TEST, _PACKED_ARTIFACT = "tests/kernels/test_kernels.py", "tests/artifact/test_packed.py"
_BYTES, _BYTE_TEST = f"{_KERNELS}/bytes.cpp", "tests/kernels/test_bytes.py"
_EXACT_BYTES = f"{_BYTE_TEST}::test_bytes_are_multiplied_exactly"
PACKED = [
    (_BYTES, "_mm512_set1_epi32(-zero)", "_mm512_set1_epi32(zero)", "the zero point of an input is added to a product of bytes", _EXACT_BYTES),
    (_BYTES, "shift[r] = c;", "shift[r] = 0;", "a product of bytes forgets zero points of weights", _EXACT_BYTES),
    (_BYTES, "if (B < 8 && c) {", "if (B < 6 && c) {", "a product of bytes forgets zero points of groups of 6 and 7 bits", _EXACT_BYTES),
    (_BYTES, "if (in_lanes(w)) shifts", "if (false) shifts", "a product of bytes forgets zero points of groups of 8 bits", _EXACT_BYTES),
    (_BYTES, "codes.scale[codes.each ? n + m : 0]", "codes.scale[0]", "all rows get the scale of the first", _EXACT_BYTES),
    (_BYTES, "lane < last / 4 && grouped", "lane <= first / 4 && grouped", "groups of bytes lose the scales of some lanes", _EXACT_BYTES),
    (_BYTES, "begin < codes.rows; begin += at_once", "begin < 1; begin += at_once", "rows beyond those that the caches hold are left out", f"{_BYTE_TEST}::test_more_rows_than_the_caches_hold"),
    (f"{_KERNELS}/table.py", "size <= MOST_SUMMED and", "", "sums of products of bytes overflow", f"{_BYTE_TEST}::test_what_bytes_are_for"),
    (f"{_KERNELS}/table.py", "return _reason(_VNNI, dense, case) is not None", "return True", "a weight of 8 bits is held in oneDNN's order where it need not be", f"{_BYTE_TEST}::test_what_bytes_are_for"),
    (_PACKING, "codes[..., place::8].to(torch.int64) << (place * bits)", "codes[..., place::8].to(torch.int64) << (place * 8)", "packed codes have gaps", f"{_PACKING_TEST}::test_by_hand"),
    (_PACKING, "codes = codes + 2 ** (bits - 1)", "codes = codes + 2 ** (bits - 1) - 1", "symmetric codes are packed one step too low", f"{_PACKING_TEST}::test_a_packed_weight_has_the_values_of_the_fake_quantized_one"),
    (_PACKED_INPUT, "scale = symmetric_scale(absmax * self.clip, self.num_bits, x.dtype)", "scale = symmetric_scale(absmax, self.num_bits, x.dtype)", "packed layers do not clip tokens", f"{_PACKED_TEST}::test_codes_of_inputs_are_those_of_the_simulation"),
    (_PACKED_INPUT, "if bool(broken.any()):", "if False:", "NaN becomes a code", f"{_PACKED_TEST}::test_rows_of_nan_give_nan_and_no_others"),
    (_PACKED_INPUT, "kept[0] == key and kept[1] is x:", "True:", "packed layers take the codes of another input", f"{_PACKED_TEST}::test_layers_of_a_site_quantize_their_input_once"),
    (_PACKED, "if moved.dtype != present.dtype or moved.device != present.device:", "if moved.device != present.device:", "scales of packed layers change their type", f"{_PACKED_TEST}::test_another_type_is_refused_and_the_present_one_is_none"),
    (_PACKED, "if quantizer.low.shape != ():", "if False:", "one range per channel is packed as if it were one", f"{_PACKED_TEST}::test_what_cannot_be_packed_says_why"),
    (_PACKED, "(sinks.tokens or not sinks.stored)", "False", "sink tokens that pass are quantized when packed", f"{_PACKED_ARTIFACT}::test_stored_sinks_are_packed_and_passing_ones_simulated"),
    (f"{_KERNELS}/self_test.py", "if not error_of_it <= _TOLERANCE[dtype]:", "if error_of_it > _TOLERANCE[dtype]:", "a kernel that gives NaN is used", f"{_KERNEL_TEST}::test_a_kernel_that_gives_nan_is_refused"),
    (f"{_KERNELS}/self_test.py", "if taken > TIMES_SLOWER * max(expected, 1e-4):", "if False:", "a slow kernel is used", f"{_KERNEL_TEST}::test_a_kernel_that_is_slow_is_refused"),
    (f"{_KERNELS}/torch_kernels.py", "shift = given.zero_point - 128", "shift = given.zero_point", "int8 codes are taken for unsigned ones", f"{_KERNEL_TEST}::test_integer_sums_are_exact"),
    (f"{_KERNELS}/torch_kernels.py", 'if layer.codes.device.type == "cpu":', "if False:", "a CPU writes out a whole weight", f"{_KERNEL_TEST}::test_a_weight_written_in_parts_gives_the_same"),
    (_PACKING, "packed_bytes(place * groups, self.bits)", "packed_bytes(place, self.bits)", "a part of a weight has the zero points of other outputs", f"{_KERNEL_TEST}::test_a_weight_written_in_parts_gives_the_same"),
    (_PACKING, "self.codes[first:last], self.scale[first:last], zeros", "self.codes[first:last], self.scale[:last - first], zeros", "a part of a weight has the scales of other outputs", f"{_KERNEL_TEST}::test_a_weight_written_in_parts_gives_the_same"),
    (f"{_KERNELS}/onednn.py", "dtype=torch.int32) - given.zero_point * size", "dtype=torch.int32)", "zero points of weights meet inputs without theirs", f"{_KERNEL_TEST}::test_every_kernel_is_the_reference"),
    (f"{_KERNELS}/int4pack.py", 'return tensors if exact else tensors | {"added": added.t().contiguous()}', "return tensors", "zero points get lost in torch's 4-bit product", f"{_KERNEL_TEST}::test_every_kernel_is_the_reference"),
    (f"{_KERNELS}/table.py", "aligned = not case.grouped or case.group_size % 8 == 0", "aligned = True", "the extension reads groups that begin within a byte", f"{_KERNEL_TEST}::test_groups_that_begin_within_a_byte_are_left_to_torch"),
    (f"{_KERNELS}/packed_model.py", "transform_input(list(layers.values()), transform.to(device))", "pass", "packed layers leave their transform out", f"{_PACKED_ARTIFACT}::test_a_transform_of_the_input_runs_in_front_of_packed_layers"),
    (f"{_KERNELS}/table.py", "sizes = case.features[0] % 8 == 0 and case.group_size % 8 == 0", "sizes = True", "int8 tensor cores get sizes that they refuse", "tests/kernels/test_triton.py::test_a_gpu_gets_its_own_kernels"),
    (f"{_KERNELS}/packed_model.py", "transform_input(list(layers.values()), transform.to(device))", "transform_input(list(layers.values()), transform)", "a transform stays on the CPU", "tests/artifact/test_packed_device.py::test_all_that_a_packed_layer_holds_is_where_its_weight_is"),
    ("qvlm_lightning/nn/packed_linear.py", "bias = None if linear.bias is None else linear.bias.to(device)", "bias = linear.bias", "biases of packed layers stay on the CPU", "tests/artifact/test_packed_device.py::test_all_that_a_packed_layer_holds_is_where_its_weight_is"),
    (f"{_KERNELS}/product.cpp", "_mm256_srlv_epi32(_mm256_mullo_epi32(lanes, _mm256_set1_epi32(narrow)), _mm256_set1_epi32(3))", "lanes", "narrow groups get scales of their neighbours", f"{_KERNEL_TEST}::test_narrow_groups_keep_their_own_scales"),
    (f"{_KERNELS}/wide.h", "add(r, sixty_four<B>(read, 1), given + P);", "add(r, sixty_four<B>(read, 0), given + P);", "the second 64 of 128 codes are the first", "tests/kernels/test_wide.py"),
    (f"{_KERNELS}/wide.h", "const int64_t place = pairs ? j % 2 * BLOCK + j / 2 : j;", "const int64_t place = j;", "even and odd codes meet each other's numbers", "tests/kernels/test_wide.py"),
    (f"{_KERNELS}/attention.cpp", "_mm256_hadd_ps(totals[2], totals[3])", "_mm256_hadd_ps(totals[3], totals[2])", "two of four tokens change places", f"{_DECODING}::test_one_query_attends_to_all_keys"),
    (f"{_KERNELS}/attention.cpp", "for (int k = 0; k < 4; ++k) scores[s + k] += dot(query, key[k], last, channels);", "", "channels behind whole registers have no score", f"{_DECODING}::test_one_query_attends_to_all_keys"),
    (f"{_KERNELS}/product.cpp", "x_type == 1 && Sums::fit(parts[0].w)", "Sums::fit(parts[0].w)", "inputs in float32 are rounded", f"{_ROUNDED}::test_other_types_are_not_rounded"),
    (f"{_KERNELS}/rounded.h", "largest <= MASSIVE * root * root && ", "", "a massive number takes the others their digits", f"{_ROUNDED}::test_a_row_with_a_massive_number_stays_in_full_precision"),
    (f"{_KERNELS}/rounded.h", "_mm256_sqrt_ps(absolute)", "absolute", "massive numbers hide each other", f"{_ROUNDED}::test_massive_numbers_do_not_hide_each_other"),
    (f"{_KERNELS}/rounded.h", "LARGEST = 16383", "LARGEST = 8191", "inputs lose a bit", f"{_ROUNDED}::test_rounding_is_finer_than_bfloat16"),
    (f"{_KERNELS}/rounded.h", "Four<B> four(sums, part.w);", "Four<B> four(sums, parts[0].w);", "weights of one call get the scales of the first", f"{_ROUNDED}::test_weights_in_one_call_keep_their_outputs"),
    (f"{_KERNELS}/rounded.h", "totals[place] += numbers[j];", "totals[place] = numbers[j];", "zero points take off the last number of a sum only", f"{_ROUNDED}::test_rounding_is_finer_than_bfloat16"),
    (f"{_KERNELS}/rounded.h", "if (!sums.narrow) groups[r].repeat(sums.count, sums.count / sums.groups);", "", "sums of a long group get the scales of other groups", f"{_ROUNDED}::test_rounding_is_finer_than_bfloat16"),
    (f"{_KERNELS}/rounded.h", "four.meet(begin + r, steps, totals)", "four.meet(r, steps, totals)", "the last outputs get the scales of the first of them", f"{_ROUNDED}::test_rounding_is_finer_than_bfloat16"),
    (f"{_KERNELS}/parts.h", "part.y += n * part.w.outputs;", "part.y += 0;", "rows behind a massive one are written over the first ones", f"{_ROUNDED}::test_a_row_with_a_massive_number_stays_in_full_precision"),
    (f"{_KERNELS}/product.cpp", "BLOCK % w.size() == 0 && ", "", "groups whose borders lie within a block of codes are read as if they did not", f"{_KERNEL_TEST}::test_narrow_groups_keep_their_own_scales"),
    (f"{_KERNELS}/extension.py", 'print("building the C++ extension, once: about half a minute", file=sys.stderr)', "pass", "half a minute of building passes in silence", "tests/kernels/test_building.py"),
    (f"{_KERNELS}/extension.py", "build_directory=scratch,", "", "a build that was killed holds every later one up", "tests/kernels/test_building.py"),
    ("qvlm_lightning/ranks.py", "self.handler.hooks.append(weakref.WeakMethod(self._signalled))", "self.handler.hooks.append(lambda own=self._signalled: own)", "every trainer of a table stays in memory", "tests/test_ranks.py::test_a_watch_lets_its_trainer_go"),
    ("qvlm_lightning/stopping.py", "os.register_at_fork(after_in_child=lambda: _call(own))", "os.register_at_fork(after_in_child=self._give_back)", "every handler of signals stays in memory", "tests/test_ranks.py::test_a_handler_lets_what_it_tells_go"),
    ("qvlm_lightning/evaluation/cli.py", 'cli.model.packed = not cli.config["simulate"] and _on_cpu(cli.trainer)', "pass", "eval.py scores the simulation for the packed model", "tests/artifact/test_packed_evaluation.py::test_packed_weights_answer_unless_told_to_simulate"),
    ("qvlm_lightning/evaluation/cli.py", "if module.kernels is not None and module.kernels.used():", "if False:", "an evaluation does not say which kernels its layers ran", "tests/artifact/test_packed_evaluation.py::test_packed_weights_answer_unless_told_to_simulate"),
    ("qvlm_lightning/evaluation/cli.py", "path.unlink(missing_ok=True)", "pass", "kernels of packed answers stand beside answers of the simulation", "tests/artifact/test_packed_evaluation.py::test_packed_weights_answer_unless_told_to_simulate"),
    ("qvlm_lightning/methods/rotation.py", "return transform.to(weight.device).of_weight(weight)", "return transform.of_weight(weight)", "online rotations fail on a GPU", "tests/methods/test_rotation.py::test_an_online_rotation_goes_where_the_weight_is"),
    (f"{_KERNELS}/extension.py", 'return torch.empty(shape, dtype=dtype, device="cpu")', 'return torch.empty(shape, device="cpu") if dtype == torch.float32 else torch.empty(shape, dtype=dtype)', "C++ writes float32 into memory of torch's default type", f"{_KERNEL_TEST}::test_the_default_type_does_not_matter"),
    ("qvlm_lightning/weights/prepared.py", "sum(x.stat().st_size for x in left if x.is_file())", "0", "what a killed run left is taken for a full disk", "tests/methods/test_rotation_streamed.py::test_what_a_killed_run_left_counts_as_room"),
    ("qvlm_lightning/commands/_generating.py", 'packed.report()["layers"]', "{}", "qvlm generate does not say which kernels its layers ran", "tests/commands/test_generate.py::test_the_answer_is_streamed_with_its_figures"),
    ("qvlm_lightning/evaluation/module.py", 'packed = {"packed": True} if self.kernels is not None else {}', "packed = {}", "answers of the simulation count as those of the packed model", "tests/artifact/test_packed_evaluation.py::test_packed_weights_answer_unless_told_to_simulate"),
    ("qvlm_lightning/evaluation/journal.py", "for key in [*now, *(before.keys() - now)]", "for key in now", "what an interrupted evaluation depended on and this one does not goes unnamed", "tests/evaluation/test_journal.py::test_differences_name_every_key"),
    (f"{_KERNELS}/extension.py", "return InputCodes(codes, scale, site.zero_point, x.dtype) if done else None", "return InputCodes(codes, scale, site.zero_point, x.dtype)", "NaN gets the codes of what lay there before", f"{_PACKED_TEST}::test_the_extension_makes_the_same_codes"),
    (f"{_KERNELS}/packed_model.py", "faster = None if built is None else built.quantized", "faster = None", "inputs of packed layers are quantized the slow way", f"{_PACKED_ARTIFACT}::test_packed_logits_are_those_of_the_simulation"),
    (f"{_KERNELS}/attention.py", "plain = attention_mask is None and", "plain =", "single queries see what is masked", f"{_DECODING}::test_a_mask_and_several_queries_are_left_to_torch"),
    (f"{_KERNELS}/key_values.py", "grown[:, :, :before] = self.all[:, :, :before]", "pass", "stored keys get lost when their buffer grows", f"{_DECODING}::test_buffers_hold_what_was_stored_across_their_growth"),
    (f"{_KERNELS}/head.py", "model.set_submodule(name, _rounded(head, weight))", "head.weight.copy_(weight.dequantized())", "a tied embedding is rounded with the head", f"{_DECODING}::test_a_quantized_head_answers_as_its_simulation"),
    ("qvlm_lightning/evaluation/generate.py", 'first["past_key_values"] = cache', "pass", "keys and values are stored in full whatever was asked for", "tests/commands/test_generate.py::test_head_and_stored_keys_can_be_smaller"),
    ("qvlm_lightning/commands/_generating.py", "more / (last - first)", "len(self.times) / (last - first)", "the first token counts as generated", "tests/commands/test_generate.py::test_speed_is_that_behind_the_first_token"),
    (_PACKED_INPUT, "kept[0] == key and kept[1] is x:", "kept[0] == key:", "a copy of packed layers takes codes that the original kept", f"{_PACKED_TEST}::test_a_copy_takes_none_of_the_codes_that_the_original_kept"),
    (_PACKED_SITE, "if key != version_key(x):", "if key[0] != id(x):", "layers take the product of what their input was before", f"{_SITE_TEST}::test_another_input_is_not_taken_for_the_first[16]"),
    (_PACKED_SITE, "self._kept = (key, x, outputs)", "self._kept = (key, x.clone(), outputs)", "another tensor can get the identity of an input whose product is kept", f"{_SITE_TEST}::test_inputs_and_outputs_are_let_go_when_all_layers_have_answered[16]"),
    (_PACKED_SITE, "y = outputs.pop(place, None)", "y = outputs.get(place)", "a layer answers twice with one tensor", f"{_SITE_TEST}::test_any_layer_may_come_first_and_what_was_taken_is_computed_again"),
    (_PACKED_SITE, "        if not outputs:\n", "        if False:\n", "inputs of shared products are never let go", f"{_SITE_TEST}::test_inputs_and_outputs_are_let_go_when_all_layers_have_answered[16]"),
    (_PACKED_SITE, "if key is None:", "if False:", "a product is kept although nobody could tell whether it is right", f"{_SITE_TEST}::test_another_input_is_not_taken_for_the_first[16]"),
    (_PACKED, "if shared is not None and self.site is not None and shared.takes_all_of(self.site):", "if False:", "codes that no layer will ask for stay", f"{_SITE_TEST}::test_inputs_and_outputs_are_let_go_when_all_layers_have_answered[4]"),
    (_PACKED_SITE, "return len(self.weights) == site.consumers", "return True", "a layer of another width makes the codes of its site again", f"{_SITE_TEST}::test_a_layer_of_another_width_stays_alone_and_shares_the_codes"),
    (_PACKED, 'held["codes"] is weight.codes and held["scale"] is weight.scale', "True", "a layer answers with the weight that was replaced", f"{_SITE_TEST}::test_a_layer_whose_weight_was_replaced_answers_with_the_new_one"),
    (f"{_KERNELS}/packed_model.py", "form = (layer.kernels[0].together, layer.bits, layer.groups, layer.dtype)", "form = (layer.kernels[0].together, layer.groups, layer.dtype)", "weights of several widths are read as if they had one", f"{_SITE_TEST}::test_a_layer_of_another_width_stays_alone_and_shares_the_codes"),
    (f"{_KERNELS}/packed_model.py", "    share_products(list(layers.values()))\n    return layers", "    return layers", "layers of a packed model answer one by one", f"{_PACKED_ARTIFACT}::test_layers_of_a_site_answer_few_rows_together"),
    (f"{_KERNELS}/extension.py", "0 if scale is None else scale.numel()", "1", "all tokens get the scale of the first", f"{_KERNEL_TEST}::test_every_kernel_is_the_reference"),
]
_LEADER, _LEADER_RUN = "qvlm_lightning/results/leaderboard.py", "qvlm_lightning/commands/_leaderboard_run.py"
_LEADER_PLAN, _LEADER_ESTIMATE = "qvlm_lightning/commands/_leaderboard_plan.py", "qvlm_lightning/commands/_leaderboard_estimate.py"
_LEADER_TABLES = "qvlm_lightning/results/leaderboard_tables.py"
_RANKED, _BOARD = "tests/evaluation/test_leaderboard.py", "tests/commands/test_leaderboard.py"
LEADERBOARD = [
    (_LEADER, "next((name for name in judged if name not in ours), None)", "next(iter(judged), None)", "a method of ours is its own rival", f"{_RANKED}::test_every_figure_is_that_of_plain_loops"),
    (_LEADER, "else (False, kl[\"value\"])", "else (False, -kl[\"value\"])", "the highest KL is ranked first", f"{_RANKED}::test_every_figure_is_that_of_plain_loops"),
    (_LEADER, "np.mean(whole, axis=0)", "whole[0]", "KL is that of the first seed", f"{_RANKED}::test_every_figure_is_that_of_plain_loops"),
    (_LEADER, "sorted(mine.answers.keys() & theirs.answers.keys())", "sorted(mine.answers)[:1]", "a seed is compared with another one", f"{_RANKED}::test_rows_of_other_seeds_are_compared_on_the_common_ones"),
    (_LEADER, "key = *place, mine.split, tuple(mine.ids)", "key = *place, mine.split", "answers to other questions are compared", f"{_RANKED}::test_contests_are_kept_apart_and_get_their_costs"),
    (_LEADER, "variant.activation_mode, variant.stress\n", "variant.activation_mode, 1\n", "a stress variant competes with the model as trained", f"{_RANKED}::test_contests_are_kept_apart_and_get_their_costs"),
    (_LEADER, "row[\"ci_low\"] <= 0 <= row[\"ci_high\"]", "row[\"ci_low\"] < 0 < row[\"ci_high\"]", "an interval that ends at 0 counts as a difference", f"{_RANKED}::test_a_difference_inside_the_noise_is_none"),
    (_LEADER_TABLES, "\"\" if is_significant(row) else \" seeds disagree\"", "\"\"", "seeds of both signs are not named", f"{_RANKED}::test_a_difference_inside_the_noise_is_none"),
    (_LEADER_TABLES, "with_interval(f\"{name}_minus_{other}\", standing.against[what]", "with_interval(f\"{name}_minus_{other}\", standing.against[\"baseline\"]", "the CSV takes rtn for the rival", f"{_RANKED}::test_the_csv_has_every_number_once"),
    ("qvlm_lightning/results/charts.py", "max(math.log10(value), low) - low", "value - low", "KL is drawn on no logarithmic scale", "tests/results/test_charts.py::test_magnitudes_are_placed_by_their_logarithms"),
    ("qvlm_lightning/results/pages.py", "(?:p=\\S+|seeds disagree)", "(?:p=\\S+)", "a difference with a doubt is not parted on the page", f"{_RANKED}::test_the_page_parts_a_difference_from_its_interval"),
    (_LEADER_PLAN, "tables.append(_parsed(common | _own(given)))", "tables.append(_parsed(_own(given) | common))", "a table's own keys are overwritten", f"{_BOARD}::test_tables_have_in_common_what_they_do_not_say"),
    (_LEADER_PLAN, "    _refuse_repeated(tables)\n", "", "two tables write one file of answers", f"{_BOARD}::test_what_is_wrong_with_a_plan_is_one_sentence"),
    (_LEADER_ESTIMATE, "START + (rough - START) * table.pairs / PAIRS", "rough", "an estimate does not depend on the pairs", f"{_BOARD}::test_the_estimate_is_the_sum_of_what_is_left"),
    (_LEADER_ESTIMATE, "        for key in _keys(table, calibration):\n            if key", "        for key in _keys(table, calibration)[:1]:\n            if key", "seconds of a method at another scheme are not taken", f"{_BOARD}::test_finished_rows_say_how_long_others_take"),
    (_LEADER_ESTIMATE, "            full.add(path)\n", "", "a shared full precision counts for every table", f"{_BOARD}::test_a_full_precision_that_tables_share_counts_once"),
    ("qvlm_lightning/commands/leaderboard.py", "    refuse_long(estimate, plan.max_hours)\n", "", "a plan of days is begun", f"{_BOARD}::test_a_plan_that_takes_too_long_is_refused"),
    (_LEADER_RUN, "        refuse_mixed(runs)\n", "", "tables that cannot share a folder are begun", f"{_BOARD}::test_tables_of_one_folder_must_agree_on_their_pairs"),
    (_LEADER_RUN, "_method(table, variant).check(planned_scheme(table, variant))", "_method(table, variant)", "a method that can do nothing is refused after hours", f"{_BOARD}::test_a_method_that_can_do_nothing_is_refused_before_work"),
    (_LEADER_RUN, "if variant.name in names}", "if variant.title in names}", "a row of ours is a rival on its page", f"{_BOARD}::test_a_leaderboard_of_two_tables_and_again"),
    ("qvlm_lightning/commands/_generating.py", "from qvlm_lightning.peak_memory import host_peak", "from qvlm_lightning.calibration import Calibrator  # noqa: F401\nfrom qvlm_lightning.peak_memory import host_peak", "an answer loads Lightning", "tests/commands/test_generate.py"),
    ("qvlm_lightning/commands/_table_run.py", "            planned_scheme(plan, variant)  # rows are compared with it when they are made\n", "            pass\n", "a scheme that cannot be read is refused behind the first row", "tests/commands/test_table.py::test_a_scheme_that_cannot_be_read_is_refused_before_work"),
    ("qvlm_lightning/commands/_table_files.py", 'model.get("init_args", model)', 'model.get("init_args", {})', "a scheme file without init_args is refused", "tests/commands/test_table.py::test_a_scheme_file_holds_a_scheme"),
    ("qvlm_lightning/commands/_table_row.py", "own = None if changed else planned_scheme", "own = planned_scheme", "options of a plan that change widths make a row another's", "tests/commands/test_table.py::test_options_of_the_plan_may_change_the_scheme"),
    ("qvlm_lightning/commands/_table_plan.py", 'scheme_name.partition("+")[0] == planned.name.partition("+")[0]', "scheme_name == planned.name", "overrides of a plan's options make a row another's", "tests/commands/test_table.py::test_a_scheme_file_may_have_overrides_and_whatever_name"),
    ("tools/joined/development.py", '("test", "development")', '("test", "test")', "choices are made on test pictures", "tests/joined/test_table.py::test_choices_are_made_on_pictures_that_nobody_trained_on_or_reports"),
    ("qvlm_lightning/peak_memory.py", '(_PROCESS / "clear_refs").write_text(_RESET)', "pass", "the peak of a row is that of all rows before", f"{_BOARD}::test_the_peak_is_that_of_the_stretch"),
]
_RIVALS, _FOREIGN = "tests/commands/test_rivals.py", "tests/evaluation/test_foreign_weights.py"
_RIVAL_PLAN, _RIVAL_RUN = "qvlm_lightning/commands/_rival_plan.py", "qvlm_lightning/commands/_rival_run.py"
_STANDIN = f"{_RIVALS}::test_a_run_with_a_stand_in_and_again"
_FOREIGN_WEIGHTS = "qvlm_lightning/evaluation/foreign_weights.py"
RIVALS = [
    (_RIVAL_PLAN, "if acts and scheme.activation_mode != \"dynamic_token\":", "if False:", "a tool is asked for static ranges, which are then taken per token", f"{_RIVALS}::test_a_tool_has_the_schemes_that_it_can"),
    (_RIVAL_PLAN, "for seed in table.seeds:", "for seed in [0]:", "a tool has one seed beside our three", f"{_RIVALS}::test_rows_are_those_of_every_scheme_seed_and_stress_once"),
    (_RIVAL_RUN, "known.get(\"key\") == self._key(row) and", "bool(known) and", "a row of another version of a tool is taken", _STANDIN),
    (_RIVAL_RUN, "calibration[\"cpu_seconds\"]", "known[\"process\"][\"cpu_seconds\"]", "a tool's seconds have its imports", _STANDIN),
    ("qvlm_lightning/commands/_rival_inputs.py", "f\"--data.init_args.seed={seed}\"", "\"--data.init_args.seed=0\"", "a tool has the pairs of another seed", _STANDIN),
    ("qvlm_lightning/commands/_rival_environment.py", "    _check_room(missing, root)\n", "", "a disk that is too small fills up with an environment", f"{_RIVALS}::test_an_environment_that_cannot_be_made_is_one_sentence"),
    (_FOREIGN_WEIGHTS, "        self._quantize_activations(model)\n", "", "a tool's activations are in full precision", f"{_FOREIGN}::test_weights_rounded_as_ours_answer_as_ours"),
    (_FOREIGN_WEIGHTS, " + repr(self.weights.scheme.identity()).encode()", "", "answers of another scheme are taken for a tool's", f"{_FOREIGN}::test_other_weights_are_another_source"),
    (_LEADER_ESTIMATE, "    _add_rivals(found, known, rivals)\n", "", "the estimate leaves other tools out", f"{_RIVALS}::test_the_estimate_counts_rows_and_environments"),
    (_LEADER_RUN, " + foreign.answers\n", "\n", "rows of other tools are in no contest", _STANDIN),
]
# fmt: on

MUTANTS = [
    *QUANT,
    *LOSSES,
    *NN,
    *METHODS,
    *CALIBRATION,
    *VISION,
    *FORWARD,
    *CALLBACKS,
    *REPORTING,
    *ENGINE,
    *SINKS,
    *OVERRIDES,
    *FIDELITY,
    *STRESS,
    *DAILY,
    *SEAM,
    *STOPPING,
    *STATISTICS,
    *GPTQ,
    *AESPA,
    *FOLDS,
    *ROTATIONS,
    *STREAMED_ROTATIONS,
    *RPTQ,
    *ADAROUND,
    *BALANCES,
    *ZFOLDS,
    *EXPORT,
    *PACKED,
    *LEADERBOARD,
    *RIVALS,
]
