"""Wrong solutions of lesson 5's exercises, and right but odd ones. See tests/test_assignments.py."""

# What is replaced more than once
TWICE = "twice = {name: double(value) for name, value in cond.items()}"
EMPTY = 'twice["mask"][len(twice["mask"]) // 2:] = False'
PREPARED = 'return {"both": diffusion.prepare(model, **twice)}'
UNPREPARED = 'both = inner_prepare(**cond)["both"] if both is None else both'
ASKED = "with_prompt, without = model(double(x), double(t), **both).chunk(2)"
HALVES = "eps, variance = with_prompt.chunk(2, dim=1)"
HALF = "eps_empty = without.chunk(2, dim=1)[0]"
LINE = "return torch.cat([eps_empty + scale * (eps - eps_empty), variance], dim=1)"
PREPARE = "denoiser.prepare = inner_prepare"
SWITCH = "with torch.enable_grad():            # samplers run without"
LEAF = "x = x.detach().requires_grad_()"
LOGITS = "logits = LOGIT_SCALE * (clip.image(x, t) * text_embedding).sum()"
SLOPE = "return scale * torch.autograd.grad(logits, x)[0]"
TRUE = "true = ((said == shown[:, None]) | (said < 0)).all(2).float()"
SIMILAR = "logits = LOGIT_SCALE * images.float() @ texts.float().T"
CAPTIONS = 'of_captions = F.cross_entropy(logits, true / true.sum(1, keepdim=True), reduction="none")'
IMAGES = 'of_images = F.cross_entropy(logits.T, true.T / true.T.sum(1, keepdim=True), reduction="none")'
BOTH = "return (of_captions + of_images) / 2"


def line(noise, variance="variance"):
    """In the place of LINE: another mixture of the two answers."""
    return f"return torch.cat([{noise}, {variance}], dim=1)"


# (exercise, what stands in the module, what replaces it, words of the idea that the message must name)
MUTANTS = [
    # 5.1 classifier_free
    ("5.1", LINE, line("eps + scale * (eps_empty - eps)"), "swapped"),
    ("5.1", LINE, line("eps_empty - scale * (eps - eps_empty)"), "s = 1 is the model"),
    ("5.1", LINE, line("(1 + scale) * eps - scale * eps_empty"), "another form of the scale"),
    ("5.1", LINE, line("eps + scale * (eps - eps_empty)"), "another form of the scale"),
    ("5.1", LINE, line("eps_empty + (scale - 1) * (eps - eps_empty)"), "another form of the scale"),
    ("5.1", LINE, line("scale * eps - (1 - scale) * eps_empty"), "s = 0 is the model"),
    ("5.1", LINE, line("scale * (eps - eps_empty)"), "ε̂ = ε_∅"),
    ("5.1", LINE, line("scale * eps"), "s = 0 is the model"),
    ("5.1", LINE, line("eps_empty + scale * (with_prompt - without).chunk(2, dim=1)[1]"), "ε_∅"),
    ("5.1", LINE, line("eps_empty + max(scale, 1) * (eps - eps_empty)"), "s = 0 is the model"),
    ("5.1", LINE, line("eps_empty + scale * (eps - eps_empty).clamp(-1, 1)"), "s = 1 is the model"),
    ("5.1", LINE, "return without + scale * (with_prompt - without)", "variance channels were guided too"),
    ("5.1", LINE, line("eps_empty + scale * (eps - eps_empty)", "without.chunk(2, dim=1)[1]"),
     "answers with the prompt"),
    ("5.1", LINE, line("eps_empty + scale * (eps - eps_empty)", "scale * variance"), "answers with the prompt"),
    ("5.1", LINE, line("eps_empty + scale * (eps - eps_empty)", "(variance + without.chunk(2, dim=1)[1]) / 2"),
     "answers with the prompt"),
    ("5.1", LINE, "return eps_empty + scale * (eps - eps_empty)", "as many channels"),
    ("5.1", LINE, "return torch.cat([variance, eps_empty + scale * (eps - eps_empty)], dim=1)", "variance"),
    ("5.1", HALVES, "variance, eps = with_prompt.chunk(2, dim=1)", "variance"),
    ("5.1", HALF, "eps_empty = without.chunk(2, dim=1)[1]", "ε_∅"),
    ("5.1", ASKED, "without, with_prompt = model(double(x), double(t), **both).chunk(2)", "swapped"),
    ("5.1", EMPTY, 'twice["mask"][:len(twice["mask"]) // 2] = False', "wrong half"),
    ("5.1", EMPTY, 'twice["mask"][len(twice["mask"]) // 2:] = True', "ε_∅"),
    ("5.1", EMPTY, 'twice["mask"][:] = False', "first branch was not told"),
    ("5.1", EMPTY, 'twice["tokens"][len(twice["mask"]) // 2:] = 0', "ε_∅"),
    ("5.1", EMPTY, "pass", "second branch was told the prompt"),
    ("5.1", EMPTY, 'twice["mask"] = ~twice["mask"]', "ε_∅"),
    ("5.1", EMPTY, 'twice["mask"][1::2] = False', "ε_∅"),
    ("5.1", EMPTY, 'twice["mask"][len(twice["mask"]) // 2:, 1:] = False', "ε_∅"),
    ("5.1", EMPTY, EMPTY + '\n        twice["low_res"][len(twice["mask"]) // 2:] = 0', "ε_∅"),
    ("5.1", TWICE, 'twice = cond | {"mask": double(cond["mask"])}', "doubled"),
    ("5.1", TWICE, 'twice = {name: double(value) if name in ("tokens", "mask") else value'
     " for name, value in cond.items()}", "doubled"),
    ("5.1", TWICE, "twice = {name: value.repeat_interleave(2, 0) for name, value in cond.items()}", "ε_∅"),
    ("5.1", TWICE, 'cond["mask"][:] = cond["mask"] & True\n        twice = {name: double(value) for name, value in'
     ' cond.items()}\n        cond["mask"][:] = False', "belongs to the caller"),
    ("5.1", ASKED, "with_prompt, without = model(double(x), t, **both).chunk(2)", "doubled"),
    ("5.1", ASKED, "with_prompt, without = model(x, t, **both).chunk(2)", "doubled"),
    ("5.1", ASKED, "with_prompt, without = model(torch.cat([x, torch.randn_like(x)]), double(t), **both).chunk(2)",
     "ε_∅"),
    ("5.1", ASKED, "with_prompt, without = model(double(x), torch.cat([t, t * 0]), **both).chunk(2)", "ε_∅"),
    ("5.1", PREPARED, 'return {"both": twice}', "what depends on the prompt alone"),
    ("5.1", UNPREPARED, "both = both or twice\n        both = diffusion.prepare(model, **both)".replace(
        "both or twice", 'inner_prepare(**cond)["both"] if both is None else both'), "computed once"),
    ("5.1", PREPARE, "pass", "computed once"),
    ("5.1", PREPARE, 'denoiser.prepare = lambda **cond: cond', "computed once"),
    ("5.1", PREPARE, "denoiser.prepare = lambda **cond: diffusion.prepare(model, **cond)", "computed once"),
    ("5.1", PREPARED, 'diffusion.prepare(model, **twice)\n        return {"both": twice}', "prepare returned"),

    # 5.2 clip_guidance
    ("5.2", SWITCH, "if True:", "samplers run without gradients"),
    ("5.2", SWITCH, "with torch.no_grad():", "samplers run without gradients"),
    ("5.2", LEAF, "x = x.detach()", "x needs one"),
    ("5.2", LEAF, "x = x.requires_grad_()", "detach it"),
    ("5.2", SLOPE, "return -scale * torch.autograd.grad(logits, x)[0]", "sign"),
    ("5.2", LOGITS, LOGITS.replace("LOGIT_SCALE * ", "-LOGIT_SCALE * "), "sign"),
    ("5.2", LOGITS, LOGITS.replace("LOGIT_SCALE * ", ""), "LOGIT_SCALE"),
    ("5.2", LOGITS, LOGITS.replace("LOGIT_SCALE * ", "1 / LOGIT_SCALE * "), "LOGIT_SCALE"),
    ("5.2", SLOPE, "return scale * LOGIT_SCALE * torch.autograd.grad(logits, x)[0]", "LOGIT_SCALE"),
    ("5.2", LOGITS, LOGITS.replace(".sum()", ".sum(1).mean()"), "summed over the batch"),
    ("5.2", LOGITS, LOGITS.replace(".sum()", ".mean()"), "summed over the batch"),
    ("5.2", LOGITS, LOGITS.replace(".sum()", "[0].sum()"), "multiplies the gradient"),
    ("5.2", LOGITS, "logits = LOGIT_SCALE * (clip.image(x, t) @ text_embedding.T).sum()", "summed"),
    ("5.2", LOGITS, LOGITS.replace("* text_embedding", "- text_embedding"), "∇"),
    ("5.2", LOGITS, LOGITS.replace("(x, t)", "(x, 0 * t)"), "x and t of the call"),
    ("5.2", LOGITS, LOGITS.replace("(x, t)", "(x.clamp(-1, 1), t)"), "∇"),
    ("5.2", LOGITS, "logits = LOGIT_SCALE * (clip.image(x, t) * text_embedding).sum(1).softmax(0).sum()", "∇"),
    ("5.2", LOGITS, "logits = (LOGIT_SCALE * (clip.image(x, t) * text_embedding).sum(1)).sigmoid().log().sum()", "∇"),
    ("5.2", SLOPE, "return torch.autograd.grad(logits, x)[0]", "multiplies the gradient"),
    ("5.2", SLOPE, "return scale ** 2 * torch.autograd.grad(logits, x)[0]", "multiplies the gradient"),
    ("5.2", SLOPE, "return torch.autograd.grad(logits, x)[0] / scale", "multiplies the gradient"),
    ("5.2", SLOPE, "logits.backward()\n            return scale * x.grad", "no weight gets a gradient"),
    ("5.2", SLOPE, "return x.detach() + scale * torch.autograd.grad(logits, x)[0]", "∇"),
    ("5.2", SLOPE, "g = torch.autograd.grad(logits, x)[0]\n            return scale * g / g.norm()", "∇"),
    ("5.2", SLOPE, "return scale * torch.autograd.grad(logits, x)[0].sign()", "∇"),
    ("5.2", SLOPE, "return scale * torch.autograd.grad(logits, x)", "it stopped"),

    # 5.3 contrastive_loss
    ("5.3", BOTH, "return of_captions", "one direction only"),
    ("5.3", BOTH, "return of_images", "one direction only"),
    ("5.3", BOTH, "return of_captions + of_images", "averaged"),
    ("5.3", BOTH, "return ((of_captions + of_images) / 2).mean()", "a loss of its own"),
    ("5.3", BOTH, "return -(of_captions + of_images) / 2", "cross-entropy"),
    ("5.3", BOTH, "return (of_captions + of_images.flip(0)) / 2", "which caption?"),
    ("5.3", IMAGES, IMAGES.replace("logits.T, true.T / true.T", "logits, true / true"), "one direction only"),
    ("5.3", IMAGES, IMAGES.replace("logits.T,", "logits,"), "one direction only"),
    ("5.3", CAPTIONS, CAPTIONS.replace("logits,", "logits.T,"), "one direction only"),
    ("5.3", SIMILAR, SIMILAR.replace("LOGIT_SCALE * ", ""), "LOGIT_SCALE"),
    ("5.3", SIMILAR, SIMILAR.replace("LOGIT_SCALE * ", "").replace("float().T", "float().T / LOGIT_SCALE"),
     "LOGIT_SCALE"),
    ("5.3", SIMILAR, SIMILAR.replace("images.float()", "images.detach().float()").replace("texts.float()",
                                                                                       "texts.detach().float()"),
     "without gradient"),
    ("5.3", SIMILAR, "logits = LOGIT_SCALE * texts.float() @ images.float().T", "its own true ones"),
    ("5.3", TRUE, "true = torch.eye(len(said))", "the diagonal is not all the truth"),
    ("5.3", TRUE, "true = (said == shown[:, None]).all(2).float() + 1e-9", "silent"),
    ("5.3", TRUE, "true = ((said == shown[:, None]) | (said < 0)).any(2).float()", "if its other statements are"),
    ("5.3", TRUE, "true = ((said == shown[:, None]) | (shown[:, None] < 0)).all(2).float() + 1e-9", "silent"),
    ("5.3", TRUE, "true = ((said == shown[:, None]) | (said < 0) | (shown[:, None] < 0)).all(2).float()",
     "all that said[j] states"),
    ("5.3", TRUE, "true = ((said[:, None] == shown) | (said[:, None] < 0)).all(2).float()", "true"),
    ("5.3", TRUE, "true = ((said == shown[:, None]) | (said < 1)).all(2).float()", "all that said[j] states"),
    ("5.3", TRUE, "true = ((said == shown[:, None]) & (said >= 0)).all(2).float() + 1e-9", "silent"),
    ("5.3", TRUE, "true = ((said == said[:, None]) | (said < 0)).all(2).float()", "all that said[j] states"),
    ("5.3", CAPTIONS, CAPTIONS.replace("true / true.sum(1, keepdim=True)", "true"), "add up to 1"),
    ("5.3", IMAGES, IMAGES.replace("true.T / true.T.sum(1, keepdim=True)", "true.T"), "add up to 1"),
    ("5.3", CAPTIONS, CAPTIONS.replace("true.sum(1, keepdim=True)", "true.sum(0, keepdim=True)"), "shared"),
    ("5.3", IMAGES, IMAGES.replace("true.T / true.T.sum(1, keepdim=True)", "(true / true.sum(1, keepdim=True)).T"),
     "its own true ones"),
    ("5.3", CAPTIONS, CAPTIONS.replace("true / true.sum(1, keepdim=True)", "true / len(true)"), "cross-entropy"),
    ("5.3", CAPTIONS, CAPTIONS.replace("true / true.sum(1, keepdim=True)", "true.argmax(1)"), "shared"),
    ("5.3", CAPTIONS, CAPTIONS.replace("true / true.sum(1, keepdim=True)", "true.softmax(1)"), "LOGIT_SCALE"),
    ("5.3", CAPTIONS, "of_captions = -(logits.softmax(1) * true).sum(1).log()", "shared"),
]

# Right but odd solutions, which must pass
VARIANTS = [
    ("5.1", LINE, line("scale * eps + (1 - scale) * eps_empty")),
    ("5.1", LINE, line("torch.lerp(eps_empty.double(), eps.double(), float(scale)).float()")),
    ("5.1", EMPTY, 'twice["mask"] = torch.cat([cond["mask"], torch.zeros_like(cond["mask"])])'),
    ("5.1", ASKED, "halves = [{name: value.chunk(2)[i] for name, value in both.items()} for i in (0, 1)]\n"
     "        with_prompt, without = (model(x, t, **half) for half in halves)"),
    ("5.2", LOGITS, "similar = [f @ g for f, g in zip(clip.image(x, t), text_embedding.expand(len(x), -1))]\n"
     "            logits = LOGIT_SCALE * torch.stack(similar).sum()"),
    ("5.2", SLOPE, "slope, = torch.autograd.grad(scale * logits, [x])\n            return slope.detach()"),
    ("5.2", LEAF, "x = x.clone().detach()\n            x.requires_grad = True"),
    ("5.2", LOGITS, "logits = torch.einsum('be,be->b', clip.image(x, t), text_embedding.expand(len(x), -1))"
     ".sum() * LOGIT_SCALE"),
    ("5.3", TRUE, "true = torch.tensor([[all(a == b or a == -1 for a, b in zip(c, i)) for c in said.tolist()]"
     " for i in shown.tolist()], dtype=torch.float32)"),
    ("5.3", CAPTIONS, "of_captions = -(logits.log_softmax(1) * true).sum(1) / true.sum(1)"),
    ("5.3", IMAGES, "sums = (logits.double() * true).sum(0)\n"
     "    of_images = (logits.double().logsumexp(0) - sums / true.sum(0)).float()"),
    ("5.3", SIMILAR, "logits = torch.einsum('ie,ce->ic', LOGIT_SCALE * images, texts)"),
]
