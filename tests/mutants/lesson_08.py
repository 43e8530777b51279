"""Wrong solutions of lesson 8's exercises, and right but odd ones. See tests/test_assignments.py."""

# What is replaced more than once
WARMUP = "scale = min(1, (step + 1) / (config.warmup + 1))"
DECAY = "return scale * 0.5 * (1 + math.cos(math.pi * step / config.steps)) if config.decay else scale"
DROP = 'cond["mask"] &= torch.tensor([[rng.random() >= config.caption_dropout] for rng in rngs])    # [B, K] &= [B, 1]'
NOISE = "noise = diffusion.gaussian(x0, [torch.Generator().manual_seed(rng.getrandbits(63)) for rng in rngs])"
RNGS = 'rngs = [tokenizer.seeded_rng("example", self.seed, step, i) for i in self.indices]'
ASKED = '''return {"x0": x0, "t": self.timesteps(step, config.high_noise_fraction), "noise": noise, **cond}, reasons'''
TIMESTEPS = "self.timesteps(step, config.high_noise_fraction)"
MEMORY = "decay = min(self.preset.train.ema, (1 + self.step) / (10 + self.step))"
LERP = "torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)"
PAIRS = "for avg, p in zip(self.ema.parameters(), self.model.parameters()):\n            "
PART = "part_loss = self.loss({name: value.chunk(parts)[i] for name, value in batch.items()}).mean() / parts"
ADD = "            part_loss.backward()\n            loss += part_loss.detach()\n"
CLIP = "norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)"
FINITE = "self.nonfinite = 0 if math.isfinite(loss + norm) else self.nonfinite + 1"
RATE = '            group["lr"] = group["rate"] * lr_scale(self.step, self.preset.train)\n'
STEP = '''        self.step += 1
        if not self.nonfinite:
            self.optimizer.step()
            self.update_ema()
        self.optimizer.zero_grad()
'''
GIVE_UP = "if self.nonfinite == MAX_NONFINITE:"

# (exercise, what stands in the module, what replaces it, words of the idea that the message must name)
MUTANTS = [
    # 8.1 lr_scale
    ("8.1", WARMUP, "scale = min(1, step / (config.warmup + 1))", "step 0 moves already"),
    ("8.1", WARMUP, "scale = min(1, step / max(1, config.warmup))", "step 0 moves already"),
    ("8.1", WARMUP, "scale = min(1, (step + 1) / max(1, config.warmup))", "the warm-up is (n+1)/(w+1)"),
    ("8.1", WARMUP, "scale = (step + 1) / (config.warmup + 1)", "after w steps the rate is whole"),
    ("8.1", WARMUP, "scale = min(1, ((step + 1) / (config.warmup + 1)) ** 2)", "the warm-up is (n+1)/(w+1)"),
    ("8.1", WARMUP, "scale = 1", "the warm-up is (n+1)/(w+1)"),
    ("8.1", DECAY, "return scale * 0.5 * (1 + math.cos(math.pi * step / config.steps))", "the rate is constant"),
    ("8.1", DECAY, "return scale", "the decay is"),
    ("8.1", DECAY, "return scale * (1 - step / config.steps) if config.decay else scale", "half a cosine"),
    ("8.1", DECAY, "return scale * math.cos(math.pi / 2 * step / config.steps) if config.decay else scale",
     "the decay is"),
    ("8.1", DECAY, "return scale * 0.5 * (1 + math.cos(2 * math.pi * step / config.steps)) if config.decay else scale",
     "the decay is"),
    ("8.1", DECAY, "return scale * (1 + math.cos(math.pi * step / config.steps)) if config.decay else scale",
     "the decay is"),
    ("8.1", DECAY, "return 0.5 * (1 + math.cos(math.pi * step / config.steps)) if config.decay else scale",
     "multiplies the decay"),
    ("8.1", DECAY, "return min(scale, 0.5 * (1 + math.cos(math.pi * step / config.steps))) if config.decay else scale",
     "multiplies the decay"),
    ("8.1", DECAY, "after = max(0, step - config.warmup) / (config.steps - config.warmup)\n"
     "    return scale * 0.5 * (1 + math.cos(math.pi * after)) if config.decay else scale", "counts from step 0"),
    # 8.2 Trainer.batch
    ("8.2", DROP, 'cond["mask"] &= rngs[0].random() >= config.caption_dropout', "its own chance"),
    ("8.2", DROP, "", "the probability that a"),
    ("8.2", DROP, DROP.replace(">=", "<"), "the probability that a"),
    ("8.2", DROP, DROP.replace("config.caption_dropout", "0.2"), "the probability that a"),
    ("8.2", DROP, DROP.replace("config.caption_dropout", "config.caption_dropout / 4"), "the probability that a"),
    ("8.2", DROP, DROP.replace("rng.random()", "np.random.random()"), "function of the step alone"),
    ("8.2", DROP, 'cond["mask"] &= torch.rand(cond["mask"].shape) >= config.caption_dropout', "False everywhere"),
    ("8.2", DROP, 'for row, rng in zip(cond["mask"], rngs):\n'
     '            row[1:] &= rng.random() >= config.caption_dropout', "the probability that a"),
    ("8.2", DROP, 'cond["mask"] |= torch.tensor([[rng.random() < config.caption_dropout] for rng in rngs])',
     "the probability that a"),
    ("8.2", NOISE, "noise = torch.randn_like(x0)", "function of the step alone"),
    ("8.2", NOISE, NOISE.replace("torch.Generator().manual_seed(rng.getrandbits(63)) for rng in rngs",
                                 "torch.Generator().manual_seed(self.seed) for rng in rngs"), "noise of its own"),
    ("8.2", NOISE, NOISE.replace("torch.Generator().manual_seed(rng.getrandbits(63)) for rng in rngs",
                                 "torch.Generator().manual_seed(step) for rng in rngs"), "noise of its own"),
    ("8.2", NOISE, "noise = diffusion.gaussian(x0, torch.Generator().manual_seed(rngs[0].getrandbits(63)))",
     "belong to an example"),
    ("8.2", NOISE, "noise = torch.rand(x0.shape, generator=torch.Generator().manual_seed(rngs[0].getrandbits(63)))",
     "the noise is Gaussian"),
    ("8.2", NOISE, NOISE.replace("(x0, [", "(x0[:, :1], [") + ".expand_as(x0)", "in each channel"),
    ("8.2", NOISE, NOISE + " * 0.5", "variance 1"),
    ("8.2", RNGS, 'rngs = [tokenizer.seeded_rng("example", self.seed, i) for i in self.indices]', "noise of its own"),
    ("8.2", RNGS, 'rngs = [tokenizer.seeded_rng("example", step, i) for i in self.indices]',
     "noise of its own"),
    ("8.2", RNGS, 'rngs = [tokenizer.seeded_rng("example", self.seed, step, i) for i in range(len(self.indices))]',
     "belong to an example"),
    ("8.2", "x0, cond = self.conditioning(images, captions, rngs, config.crop)",
     "x0, cond = self.conditioning(images, captions, rngs)", "config.crop"),
    ("8.2", "x0, cond = self.conditioning(images, captions, rngs, config.crop)",
     "x0, cond = self.conditioning(images, captions[::-1], rngs, config.crop)", "its own caption"),
    ("8.2", "images, captions, _, reasons = self.examples(step)\n        rngs = [tokenizer.seeded_rng(\"example\"",
     "images, captions, _, reasons = self.examples(self.step)\n        rngs = [tokenizer.seeded_rng(\"example\"",
     "step n takes the positions"),
    ("8.2", ASKED, ASKED.replace(TIMESTEPS, "self.timesteps(step)"), "noisiest two fifths"),
    ("8.2", ASKED, ASKED.replace(TIMESTEPS, "(self.timesteps(step, config.high_noise_fraction) - 1).clamp(min=0)"),
     "range from 0 to the last"),
    ("8.2", ASKED, ASKED.replace(TIMESTEPS, "self.timesteps(step, config.high_noise_fraction) + 1"),
     "range from 0 to the last"),
    ("8.2", ASKED, ASKED.replace(TIMESTEPS, "torch.randint(0, len(self.process.timesteps), (len(x0),))"),
     "spread evenly"),
    ("8.2", ASKED, ASKED.replace(TIMESTEPS, "self.timesteps(0, config.high_noise_fraction)[:1].expand(len(x0))"),
     "spread evenly"),
    ("8.2", ASKED, ASKED.replace(", reasons", ", []"), "what had to be skipped"),
    ("8.2", ASKED, ASKED.replace('"noise": noise, ', ""), "all that `loss` needs"),
    ("8.2", ASKED, ASKED.replace('"x0": x0', '"x0": self.process.q_sample(x0, self.timesteps(step), noise)'),
     "as values from -1 to 1"),
    # 8.3 Trainer.update_ema
    ("8.3", MEMORY, "decay = self.preset.train.ema", "the memory is short"),
    ("8.3", MEMORY, "decay = (1 + self.step) / (10 + self.step)", "the config's ema"),
    ("8.3", MEMORY, "decay = max(self.preset.train.ema, (1 + self.step) / (10 + self.step))", "late in a run"),
    ("8.3", MEMORY, "decay = min(self.preset.train.ema, self.step / (9 + self.step))", "d = min(ema, (1+n)/(10+n))"),
    ("8.3", MEMORY, "decay = min(self.preset.train.ema, (1 + self.step) / (1 + 10 * self.step))", "late in a run"),
    ("8.3", MEMORY, "decay = min(0.999, (1 + self.step) / (10 + self.step))", "the config's ema"),
    ("8.3", LERP, LERP.replace("1 - decay", "decay"), "d is the share of the past"),
    ("8.3", LERP, "torch._foreach_lerp_(list(self.model.parameters()), list(self.ema.parameters()), 1 - decay)",
     "the weights stay as they are"),
    ("8.3", LERP, PAIRS + "avg.data = p.data.lerp_(avg.data, decay)", "the weights stay as they are"),
    ("8.3", LERP, PAIRS + "avg.data = p.data", "shares the weights' memory"),
    ("8.3", LERP, PAIRS + "avg.lerp(p, 1 - decay)", "moves a little at every step"),
    ("8.3", LERP, PAIRS + "avg = decay * avg + (1 - decay) * p", "moves a little at every step"),
    ("8.3", LERP, "self.ema.input_conv.weight.lerp_(self.model.input_conv.weight, 1 - decay)",
     "for every one of the weights"),
    ("8.3", LERP, PAIRS + "avg.mul_(decay).add_(p)", "avg ← d·avg + (1-d)·weights"),
    ("8.3", LERP, "from copy import copy\n        self.ema = copy(self.model)", "shares the weights' memory"),
    ("8.3", LERP, "self.ema = deepcopy(self.model)", "requires a gradient"),
    ("8.3", LERP, "with torch.enable_grad():\n            for avg, p in zip(self.ema.parameters(), "
     "self.model.parameters()):\n                avg.mul_(decay).add_(p * (1 - decay))", "every step would keep"),
    # 8.4 Trainer.train_step
    ("8.4", PART, PART.replace(".mean() / parts", ".mean()"), "divided by their number"),
    ("8.4", PART, PART.replace(".mean() / parts", ".sum() / parts"), "the mean of the loss"),
    ("8.4", PART, PART.replace(".chunk(parts)[i]", ".chunk(parts)[0]"), "the gradients of the parts"),
    ("8.4", PART, PART.replace(".chunk(parts)[i]", "[i::parts][:1]"), "the mean of the loss"),
    ("8.4", ADD, ADD.replace("loss += part_loss", "loss = part_loss"), "mean of the parts' losses"),
    ("8.4", ADD, "            self.optimizer.zero_grad()\n" + ADD, "the gradients of the parts are added up"),
    ("8.4", ADD, "            (part_loss * parts).backward()\n            loss += part_loss.detach()\n",
     "the gradients of the parts are added up"),
    ("8.4", ADD, ADD + "            self.optimizer.step()\n", "one step together"),
    ("8.4", CLIP, "norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])",
     "clipping comes before the step"),
    ("8.4", CLIP, "norm = nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)", "at most 1 long"),
    ("8.4", CLIP, "norm = torch.stack([nn.utils.clip_grad_norm_([p], 1.0) for p in self.model.parameters()]).norm()",
     "all gradients together"),
    ("8.4", CLIP, CLIP + "\n        nn.utils.clip_grad_value_(self.model.parameters(), 0.01)", "at most 1 long"),
    ("8.4", CLIP, CLIP + "\n        for p in self.model.parameters():\n            if p.grad is not None:\n"
     "                p.grad /= norm.clamp(max=1)", "a short gradient is left as it is"),
    ("8.4", RATE, "            pass\n", "each group's lr"),
    ("8.4", RATE, RATE.replace('group["rate"]', "self.preset.train.lr"), "each group's lr"),
    ("8.4", RATE, RATE.replace(" * lr_scale(self.step, self.preset.train)", ""), "lr_scale"),
    ("8.4", RATE, RATE.replace("self.step,", "self.step + 1,"), "lr_scale of this step's number"),
    ("8.4", RATE, RATE.replace('group["rate"]', 'group["lr"]'), "each group's lr"),
    ("8.4", STEP, STEP.replace("        self.step += 1\n", ""), "the step counter"),
    ("8.4", STEP, STEP.replace("        self.step += 1\n", "        self.step += self.compute.grad_accum + 1\n"),
     "the step counter"),
    ("8.4", STEP, STEP.replace("        self.step += 1\n", "") + "        self.step += 1\n", "d = 2/11"),
    ("8.4", STEP, STEP.replace("        self.step += 1\n        if not self.nonfinite:\n",
                               "        if not self.nonfinite:\n            self.step += 1\n"), "counts as a step"),
    ("8.4", STEP, STEP.replace("        self.optimizer.zero_grad()\n", ""), "set to zero"),
    ("8.4", STEP, STEP.replace("        if not self.nonfinite:\n            self.optimizer.step()\n",
                               "        self.optimizer.zero_grad()\n        if not self.nonfinite:\n"
                               "            self.optimizer.step()\n"), "the optimizer steps while they are there"),
    ("8.4", STEP, STEP.replace("if not self.nonfinite:", "if True:"), "is skipped"),
    ("8.4", STEP, STEP.replace("            self.optimizer.step()\n            self.update_ema()\n",
                               "            self.optimizer.step()\n        self.update_ema()\n"), "is skipped"),
    ("8.4", STEP, STEP.replace("            self.update_ema()\n", ""), "the average takes in"),
    ("8.4", STEP, STEP.replace("            self.optimizer.step()\n            self.update_ema()\n",
                               "            self.update_ema()\n            self.optimizer.step()\n"),
     "after they were corrected"),
    ("8.4", STEP, STEP.replace("            self.optimizer.step()\n", ""), "one step of the optimizer"),
    ("8.4", STEP, STEP.replace("        self.optimizer.zero_grad()\n", "            self.optimizer.zero_grad()\n"),
     "the gradients of a skipped step"),
    ("8.4", FINITE, FINITE.replace("loss + norm", "loss"), "gradient is not finite"),
    ("8.4", FINITE, "self.nonfinite = 0 if not math.isnan(loss + norm) else self.nonfinite + 1",
     "infinity is not finite"),
    ("8.4", FINITE, "self.nonfinite = 0 if math.isfinite(loss + norm) else 1", "ten steps in a row"),
    ("8.4", GIVE_UP, "if self.skipped_steps == MAX_NONFINITE:", "begins the count anew"),
    ("8.4", GIVE_UP, "if self.nonfinite > MAX_NONFINITE:", "ten steps in a row"),
    ("8.4", GIVE_UP, "if self.nonfinite == 2:", "ten steps in a row"),
    ("8.4", "        self.skipped_steps += self.nonfinite > 0\n", "", "a skipped step is counted"),
    ("8.4", '"stop": bool(stop), "bad"', '"stop": False, "bad"', "stop after this step"),
    ("8.4", "loss, parts = torch.zeros((), device=self.device), self.compute.grad_accum",
     "loss, parts, stop = torch.zeros((), device=self.device), self.compute.grad_accum, bool(stop)", "still counts"),
    ("8.4", "torch.full_like(loss, self.bad.total())", "torch.full_like(loss, len(self.bad))", "all reasons together"),
    ("8.4", '"loss": round(loss / self.ranks, 5)', '"loss": round(loss * parts, 5)', "divided by their number"),
    ("8.4", 'torch.manual_seed(tokenizer.seeded_rng("dropout", self.seed, self.step, i, self.rank).getrandbits(63))',
     "pass", "dropout's too"),
]

# (exercise, what stands in the module, what replaces it): right, if unusual, solutions
VARIANTS = [
    ("8.1", WARMUP + "\n", "scale = (step + 1) / (config.warmup + 1) if step < config.warmup else 1.0\n"),
    ("8.1", DECAY, "decay = math.cos(math.pi * step / config.steps / 2) ** 2 if config.decay else 1\n"
     "    return torch.tensor(scale, dtype=torch.float64) * decay"),
    ("8.2", DROP + "\n        " + NOISE,                     # noise first, and with numpy
     "noise = np.stack([np.random.default_rng(rng.getrandbits(63)).standard_normal(x0.shape[1:]) for rng in rngs])\n"
     "        noise = torch.from_numpy(noise).float()\n"
     "        for i, rng in enumerate(rngs):\n"
     "            if rng.random() < config.caption_dropout:\n"
     '                cond["mask"][i] = False\n'
     '                cond["tokens"][i] = self.words.end_token'),
    ("8.3", LERP, PAIRS + "avg.mul_(decay).add_(p, alpha=1 - decay)"),
    ("8.3", LERP, PAIRS + "avg.copy_(decay * avg.double() + (1 - decay) * p.double())"),
    ("8.3", LERP, PAIRS + "avg.data = avg + (1 - decay) * (p - avg)"),
    ("8.4", STEP, STEP.replace("        self.optimizer.zero_grad()\n",
                               "        for p in self.model.parameters():\n            p.grad = None\n")),
    ("8.4", CLIP, "grads = [p.grad for p in self.model.parameters() if p.grad is not None]\n"
     "        norm = sum(g.double().square().sum() for g in grads).sqrt().float()\n"
     "        for g in grads:\n            g.mul_(1 / max(1.0, norm.item()))"),
    ("8.4", ADD, "            loss = loss + part_loss.detach()\n            part_loss.backward()\n"),
]
