"""Wrong solutions of lesson 6's exercises, and right but odd ones. See tests/test_assignments.py."""

# What is replaced more than once
SHOWN = "return torch.cat([inpaint_image * inpaint_mask, inpaint_mask], dim=1)   # [B, 4, H, W]"
CALL = "return model(torch.cat([x, known_part], dim=1), t, **cond)"
REPLACE = "return lambda x0: torch.where(mask.bool(), image, x0)"
ALPHA_BAR = "alpha_bar = process.alpha_bar_prev   # ᾱ of the timestep just reached; 1 at the end"
HOLE = "return torch.where(mask.bool(), noised, x)"
ZEROS = "zeros = old.new_zeros(len(old), 4, *old.shape[2:])"
PLACES = "torch.cat([old[:, :noisy], zeros, old[:, noisy:]], dim=1)"
GROWN = "    grown.load_state_dict(weights, assign=True)\n    return grown.train(network.training)"

# (exercise, what stands in the module, what replaces it, words of the idea that the message must name)
MUTANTS = [
    # 6.1 with_known
    ("6.1", SHOWN, "return torch.cat([inpaint_image, inpaint_mask], dim=1)", "multiplied by the mask"),
    ("6.1", SHOWN, "return torch.cat([inpaint_image * (1 - inpaint_mask), inpaint_mask], dim=1)", "polarity"),
    ("6.1", SHOWN, "return torch.cat([inpaint_image * (1 - inpaint_mask), 1 - inpaint_mask], dim=1)", "polarity"),
    ("6.1", SHOWN, "return torch.cat([inpaint_image * inpaint_mask, 1 - inpaint_mask], dim=1)", "1 = known"),
    ("6.1", SHOWN, "return torch.cat([inpaint_mask, inpaint_image * inpaint_mask], dim=1)", "order of the channels"),
    ("6.1", SHOWN,
     "return torch.cat([inpaint_image * inpaint_mask, inpaint_image * 0 + inpaint_mask], dim=1)", "four more channels"),
    ("6.1", SHOWN,
     "return torch.cat([inpaint_image.mul_(inpaint_mask), inpaint_mask], dim=1)", "belongs to the caller"),
    ("6.1", SHOWN, "return torch.cat([torch.where(inpaint_mask.bool(), inpaint_image, 1.0), inpaint_mask], dim=1)",
     "multiplied by the mask"),
    ("6.1", SHOWN,
     "return torch.cat([inpaint_image * inpaint_mask[:1], inpaint_mask], dim=1)", "multiplied by the mask"),
    ("6.1", SHOWN, "noise = torch.randn_like(inpaint_image)\n"
     "        return torch.cat([(inpaint_image + 0.1 * noise) * inpaint_mask, inpaint_mask], dim=1)", "without noise"),
    ("6.1", CALL, "return model(torch.cat([known_part, x], dim=1), t, **cond)", "order of the channels"),
    ("6.1", CALL,
     "return model(torch.cat([x * (1 - known_part[:, 3:]), known_part], dim=1), t, **cond)", "order of the channels"),
    ("6.1", CALL, "return model(torch.cat([x, known_part], dim=1), t)", "passes on all others"),
    ("6.1", CALL, "return model(torch.cat([x, known_part], dim=1), t, **cond)[:, :3]", "not what it answers"),
    ("6.1", '{"known_part": known(inpaint_image, inpaint_mask), **diffusion.prepare(model, **cond)}',
     '{"known_part": known(inpaint_image, inpaint_mask), **cond}', "hands on to that of the network inside"),
    ("6.1", '{"known_part": known(inpaint_image, inpaint_mask), **diffusion.prepare(model, **cond)}',
     '{"known_part": known(inpaint_image, 1 - inpaint_mask), **diffusion.prepare(model, **cond)}', "changes nothing"),
    # 6.2 replace_known
    ("6.2", REPLACE, "return lambda x0: torch.where(mask.bool(), x0, image)", "polarity"),
    ("6.2", REPLACE, "return lambda x0: torch.where(mask.bool(), image, x0.clamp(-1, 1))", "before clipping"),
    ("6.2", REPLACE, "return lambda x0: torch.where(mask.bool(), image, x0).clamp(-1, 1)", "before clipping"),
    ("6.2", REPLACE, "return lambda x0: image * mask + x0", "what is known becomes the true image"),
    ("6.2", REPLACE, "return lambda x0: image * mask", "in the hole the prediction stays"),
    ("6.2", REPLACE,
     "return lambda x0: torch.where(mask[:1].bool(), image, x0)", "what is known becomes the true image"),
    ("6.2", REPLACE, "return lambda x0: torch.cat([torch.where(mask.bool(), image, x0)[:, :1], x0[:, 1:]], 1)",
     "what is known becomes the true image"),
    ("6.2", REPLACE,
     "return lambda x0: torch.where(mask.bool(), (image + x0) / 2, x0)", "what is known becomes the true image"),
    ("6.2", REPLACE, "return lambda x0: image.copy_(torch.where(mask.bool(), image, x0))", "belongs to the caller"),
    ("6.2", REPLACE, "return torch.where(mask.bool(), image, 0)", "anew at every step"),
    # 6.3 overwrite_known
    ("6.3", ALPHA_BAR, "alpha_bar = process.alpha_bar", "just reached"),
    ("6.3", ALPHA_BAR, "alpha_bar = process.alpha_bar_next", "just reached"),
    ("6.3", ALPHA_BAR,
     "alpha_bar = torch.cat([process.alpha_bar[:1], process.alpha_bar[:-1]])", "the image itself is put in"),
    ("6.3", ALPHA_BAR, "alpha_bar = torch.ones_like(process.alpha_bar)", "just reached"),
    ("6.3", "noised = process.extract(alpha_bar.sqrt(), t, x) *", "noised = process.extract(alpha_bar, t, x) *", "√ᾱ"),
    ("6.3", "process.extract((1 - alpha_bar).sqrt(), t, x) *", "process.extract(1 - alpha_bar, t, x) *", "√(1-ᾱ)"),
    ("6.3", "+ process.extract((1 - alpha_bar).sqrt(), t, x) *", "+ process.extract(1 - alpha_bar.sqrt(), t, x) *",
     "√(1-ᾱ)"),
    ("6.3", HOLE, "return torch.where(mask.bool(), x, noised)", "polarity"),
    ("6.3", HOLE, "return noised", "0 means unknown"),
    ("6.3", HOLE, "return torch.where(mask[:1].bool(), noised, x)",
     "0 means unknown"),
    ("6.3", "* diffusion.gaussian(image, generator)", "* diffusion.gaussian(image, None)", "from the generator"),
    ("6.3", "* diffusion.gaussian(image, generator)", "* diffusion.gaussian(image[:1], generator)",
     "has its own noise"),
    ("6.3", "    def step_fn(x, t):\n        " + ALPHA_BAR + "\n",
     "    noise = diffusion.gaussian(image, generator)\n\n    def step_fn(x, t):\n"
     "        alpha_bar, generator = process.alpha_bar_prev, torch.Generator().manual_seed(0)\n", "fresh noise"),
    ("6.3", ALPHA_BAR, "alpha_bar, t = process.alpha_bar_prev, t[:1]", "each image's own t"),
    # 6.4 add_mask_channels
    ("6.4", ZEROS, "zeros = 0.1 * torch.randn(len(old), 4, *old.shape[2:])", "start at zero"),
    ("6.4", ZEROS, "zeros = old[:, :1].repeat(1, 4, 1, 1)", "start at zero"),
    ("6.4", ZEROS,
     "zeros = torch.cat([old.new_zeros(len(old), 3, 3, 3), old.new_ones(len(old), 1, 3, 3)], 1)", "start at zero"),
    ("6.4", PLACES, "torch.cat([old, zeros], dim=1)", "their place"),
    ("6.4", PLACES, "torch.cat([zeros, old], dim=1)", "their place"),
    ("6.4", PLACES, "torch.cat([old[:, noisy:], zeros, old[:, :noisy]], dim=1)", "keep their own weights"),
    ("6.4", PLACES,
     "torch.cat([old[:, :noisy], zeros, old[:, noisy:].flip(1)], dim=1)", "low_res keeps its own weights"),
    ("6.4", "{name: value.clone() for name, value in network.state_dict().items()}", "network.state_dict()",
     "a copy has weights of its own"),
    ("6.4", GROWN, "    grown.load_state_dict(weights, assign=True)\n    return grown", "eval mode"),
    ("6.4", GROWN, "    network.requires_grad_(False)\n" + GROWN, "is not changed"),
    ("6.4", GROWN, "    network.input_conv, network.config = grown.input_conv, grown.config\n    return network",
     "is not changed"),
    ("6.4", GROWN, "    grown.load_state_dict(weights, assign=True)\n    grown.config = config\n"
     "    return grown.train(network.training)",
     "config has to say"),
    ("6.4", GROWN, "    grown = unet.UNet(replace(config, in_channels=config.in_channels + 4))\n"
     "    grown.input_conv.weight.data = weights['input_conv.weight']\n"
     "    return grown.train(network.training)", "everything else is copied"),
    ("6.4", GROWN,
     "    grown.load_state_dict(weights, assign=True)\n    return grown.train(network.training).requires_grad_(False)",
     "what is new has to learn"),
]

# (exercise, what stands in the module, what replaces it): right, if unusual, solutions
VARIANTS = [
    ("6.1", "    denoiser.prepare = inner_prepare\n", ""),        # a denoiser need not be able to prepare
    ("6.1", SHOWN, "parts = [channel * inpaint_mask[:, 0] for channel in inpaint_image.unbind(1)]\n"
     "        return torch.stack([*parts, inpaint_mask[:, 0]], dim=1)"),
    ("6.1", SHOWN, "erased = inpaint_image.masked_fill(~inpaint_mask.bool(), 0)\n"
     "        return torch.cat([erased, inpaint_mask.clone()], dim=1)"),
    ("6.2", REPLACE, "return lambda x0: x0 + mask * (image - x0)"),
    ("6.2", REPLACE, "return lambda x0: (image.double() * mask + x0.double() * (1 - mask)).to(x0.dtype)"),
    ("6.3", "        return torch.where(mask.bool(), noised, x)\n    return step_fn",
     "        return torch.stack([m * a + (1 - m) * b for m, a, b in zip(mask, noised, x)])\n    return step_fn"),
    ("6.3", "noised = process.extract(alpha_bar.sqrt(), t, x) * image",
     "a = alpha_bar[process.rows[t]].view(-1, 1, 1, 1)\n"
     "        return torch.where(mask.bool(), a.sqrt() * image.double() + (1 - a).sqrt() *\n"
     "                           diffusion.gaussian(x, generator), x.double()).float()\n"
     "        noised = process.extract(alpha_bar.sqrt(), t, x) * image"),
    ("6.4", GROWN, "    from copy import deepcopy\n"
     "    grown = deepcopy(network)\n"
     "    grown.config = replace(config, in_channels=config.in_channels + 4)\n"
     "    grown.input_conv = torch.nn.Conv2d(config.in_channels + 4, len(old), 3, padding=1)\n"
     "    with torch.no_grad():\n"
     "        grown.input_conv.weight.copy_(weights['input_conv.weight'])\n"
     "        grown.input_conv.bias.copy_(weights['input_conv.bias'])\n"
     "    return grown"),
]
