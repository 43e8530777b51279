"""Wrong solutions of lesson 4's exercises, and right but odd ones. See tests/test_assignments.py."""

# What is replaced more than once
LINSPACE = "return torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64)"
COSINE = "alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2"
CAPPED = "return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)"
CUMPROD = "alpha_bar = torch.cumprod(1 - torch.as_tensor(betas, dtype=torch.float64), dim=0)"
KEPT = "self.timesteps = list(range(len(alpha_bar))) if timesteps is None else sorted(set(timesteps))"
PREV = "self.alpha_bar_prev = torch.cat([one, self.alpha_bar[:-1]])"
NEXT = "self.alpha_bar_next = torch.cat([self.alpha_bar[1:], zero])"
BETAS = "self.betas = 1 - self.alpha_bar / self.alpha_bar_prev"
ROOTS = "self.signal, self.noise = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()"
COEF_X0 = "self.posterior_coef_x0 = self.alpha_bar_prev.sqrt() * self.betas / (1 - self.alpha_bar)"
COEF_XT = "self.posterior_coef_xt = (1 - self.alpha_bar_prev) * (1 - self.betas).sqrt() / (1 - self.alpha_bar)"
VARIANCE = "self.posterior_variance = (1 - self.alpha_bar_prev) / (1 - self.alpha_bar) * self.betas"
BORROWED = "borrowed = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]])"
ALONE = "self.log_posterior = borrowed.log() if len(kept) > 1 else self.betas.log()"
ROWS = "self.rows[kept] = torch.arange(len(kept))"
Q_SAMPLE = "return self.extract(self.signal, t, x0) * x0 + self.extract(self.noise, t, x0) * noise"
MEAN = ("return self.extract(self.posterior_coef_x0, t, x_t) * x0 + self.extract(self.posterior_coef_xt, t, x_t) * x_t")
CHUNK = "eps, between = model_output.float().chunk(2, dim=1)"
X0_FN = "x0 = x0 if x0_fn is None else x0_fn(x0)\n"
CLIP = "x0 = x0.clamp(-1, 1) if clip else x0\n"
SHARE = "share = (between + 1) / 2"
GAUSSIAN = "return GaussianStep(self.posterior_mean(x0, x_t, t), share * high + (1 - share) * low, x0)"
BOUNDS = "high, low = self.extract(self.betas.log(), t, x_t), self.extract(self.log_posterior, t, x_t)"
OUTPUT = "output = model(x_t, send(t, x_t.device), **cond)"
SIMPLE = "simple = (eps - noise).square().flatten(1).mean(1)"
WEIGHTED = "simple = simple if weights is None else simple * self.extract(weights, t, simple)"
FROZEN = "frozen = torch.cat([eps.detach(), between], dim=1)"
HYBRID = "return simple + len(self.timesteps) / 1000 * self.bound(frozen, x0, x_t, t)"
DDPM = '''        x, cond = x_T, prepare(model, **cond)
        for t in self.reversed_timesteps(x_T):
            p = self'''
ASKED = "p = self.p_mean_variance(model(x, send(t, x.device), **cond), x, t, x0_fn=x0_fn)\n            # μ̂"
PULLED = "mean = p.mean if grad_fn is None else p.mean + p.log_variance.exp() * grad_fn(x, send(t, x.device))"
LAST = "noise = gaussian(x, generator) if t[0] > self.timesteps[0] else 0"
DRAWN = "x = self.after_step(mean + (0.5 * p.log_variance).exp() * noise, t, p.x0, step_fn, callback)"
DDIM = '''        x, cond = x_T, prepare(model, **cond)
        for t in self.reversed_timesteps(x_T):
            x0, eps = self.predict(model, x, t, cond, x0_fn, grad_fn)
            sigma'''
PREDICT = "x0, eps = self.predict(model, x, t, cond, x0_fn, grad_fn)\n            sigma"
SIGMA = "sigma = eta * self.posterior_variance.sqrt()"
OLD_X0 = "x = self.extract(self.alpha_bar_prev.sqrt(), t, x) * x0 \\\n                + "
OLD_NOISE = "self.extract((1 - self.alpha_bar_prev - sigma ** 2).clamp(min=0).sqrt(), t, x) * eps"
FRESH = "x = x + self.extract(sigma, t, x) * gaussian(x, generator)"
DDIM_AFTER = "# σ is 0 at the last step\n            x = self.after_step(x, t, x0, step_fn, callback)"
FAST = 'return respace(steps, "10,10,3,2,2")[:-1] + [steps * 997 // 1000]'
STRIDES = "for stride in range(1, steps):"
SIZE = "size = steps // len(counts) + (i < steps % len(counts))"
TOO_MANY = "if count > size:"
STRIDE = "stride = (size - 1) / (count - 1) if count > 1 else 1"
SPREAD = "kept += [start + round(k * stride) for k in range(count)]"
NOISIEST = "return kept if counts[-1] > 1 else kept[:-1] + [steps - 1]"
BYTES = "return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)"


def ddim(x0="self.alpha_bar_prev.sqrt()", eps="(1 - self.alpha_bar_prev - sigma ** 2).clamp(min=0).sqrt()"):
    """In the place of OLD_X0 + OLD_NOISE: other shares of the two."""
    return f"x = self.extract({x0}, t, x) * x0 + self.extract({eps}, t, x) * eps"


# (exercise, what stands in the module, what replaces it, words of the idea that the message must name)
MUTANTS = [
    # 4.1 linear_betas
    ("4.1", "scale = 1000 / steps", "scale = 1", "scaled by 1000/steps"),
    ("4.1", "scale = 1000 / steps", "scale = steps / 1000", "scaled by 1000/steps"),
    ("4.1", LINSPACE, "return torch.linspace(1e-4, scale * 0.02, steps, dtype=torch.float64)",
     "the first and the last"),
    ("4.1", LINSPACE, "return torch.linspace(scale * 1e-4, scale * 0.02, steps)", "float64"),
    ("4.1", LINSPACE, "return torch.linspace(scale * 1e-4, scale * 0.02, steps + 1, dtype=torch.float64)[:-1]",
     "both included"),
    ("4.1", LINSPACE, "return torch.linspace((scale * 1e-4) ** 0.5, (scale * 0.02) ** 0.5, steps,"
     " dtype=torch.float64) ** 2", "not its root"),
    ("4.1", LINSPACE, "return torch.linspace(math.log(scale * 1e-4), math.log(scale * 0.02), steps,"
     " dtype=torch.float64).exp()", "equal steps"),
    ("4.1", "if steps < 20:", "if steps < 2:", "exceed 1"),
    ("4.1", "if steps < 20:", "if steps < 19:", "exceed 1"),

    # 4.2 cosine_betas
    ("4.2", CAPPED, "return 1 - alpha_bar[1:] / alpha_bar[:-1]", "capped"),
    ("4.2", CAPPED, "return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.99)", "capped"),
    ("4.2", CAPPED, "return (1 - alpha_bar[1:]).clamp(max=0.999)", "1 - ᾱ_t/ᾱ_{t-1}"),
    ("4.2", CAPPED, "return (1 - alpha_bar[:-1] / alpha_bar[1:]).clamp(max=0.999)", "1 - ᾱ_t/ᾱ_{t-1}"),
    ("4.2", COSINE, "alpha_bar = torch.cos(time * math.pi / 2) ** 2", "offset"),
    ("4.2", COSINE, "alpha_bar = torch.cos((time + 0.08) / 1.08 * math.pi / 2) ** 2", "offset"),
    ("4.2", COSINE, "alpha_bar = torch.cos((time + 0.008) * math.pi / 2) ** 2", "(1 + s)"),
    ("4.2", COSINE, "alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2)", "cos²"),
    ("4.2", "time = torch.arange(steps + 1, dtype=torch.float64) / steps",
     "time = torch.arange(steps + 1, dtype=torch.float32) / steps", "float64"),
    ("4.2", "time = torch.arange(steps + 1, dtype=torch.float64) / steps",
     "time = torch.arange(steps, dtype=torch.float64) / steps", "T + 1 values"),
    ("4.2", "time = torch.arange(steps + 1, dtype=torch.float64) / steps",
     "time = torch.arange(steps + 1, dtype=torch.float64) / (steps + 1)", "t/T"),

    # 4.3 Diffusion.__init__
    ("4.3", CUMPROD, "alpha_bar = 1 - torch.cumsum(torch.as_tensor(betas, dtype=torch.float64), dim=0)", "the product"),
    ("4.3", CUMPROD, "alpha_bar = torch.cumprod(torch.as_tensor(betas, dtype=torch.float64), dim=0)", "the product"),
    ("4.3", CUMPROD, "alpha_bar = torch.cumprod(1 - torch.as_tensor(betas, dtype=torch.float64), dim=0)\n"
     "        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])", "t included"),
    ("4.3", CUMPROD, "alpha_bar = torch.cumprod(1 - torch.as_tensor(betas, dtype=torch.float32), dim=0)", "float64"),
    ("4.3", CUMPROD, "alpha_bar = torch.cumprod(betas.mul_(-1).add_(1), dim=0)", "belongs to the caller"),
    ("4.3", KEPT, "self.timesteps = list(range(len(alpha_bar))) if timesteps is None else list(timesteps)",
     "kept once"),
    ("4.3", ROWS, "self.rows[kept] = kept", "rows says"),
    ("4.3", "self.rows = torch.full((len(alpha_bar),), -1)", "self.rows = torch.zeros(len(alpha_bar)).long()",
     "raises ValueError"),
    ("4.3", PREV, "self.alpha_bar_prev = torch.cat([zero, self.alpha_bar[:-1]])", "starts with 1"),
    ("4.3", PREV, "self.alpha_bar_prev = torch.cat([self.alpha_bar[1:], zero])", "nearer to the picture"),
    ("4.3", PREV, "self.alpha_bar_prev = torch.cat([one, alpha_bar[:-1]])[kept]", "a neighbour"),
    ("4.3", NEXT, "self.alpha_bar_next = torch.cat([self.alpha_bar[1:], one])", "ends with 0"),
    ("4.3", NEXT, "self.alpha_bar_next = torch.cat([one, self.alpha_bar[:-1]])", "nearer to noise"),
    ("4.3", BETAS, "self.betas = torch.as_tensor(betas, dtype=torch.float64)[kept]", "computed anew"),
    ("4.3", "self.alpha_bar = alpha_bar[kept]", "self.alpha_bar = torch.cumprod(1 - torch.as_tensor(betas)[kept], 0)",
     "the same ᾱ"),
    ("4.3", ROOTS, "self.signal, self.noise = self.alpha_bar, 1 - self.alpha_bar", "square root"),
    ("4.3", ROOTS, "self.signal, self.noise = self.alpha_bar.sqrt(), 1 - self.alpha_bar.sqrt()", "square root"),
    ("4.3", ROOTS, "self.noise, self.signal = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()", "√ᾱ"),
    ("4.3", "self.posterior_coef_xt = (1 - self.alpha_bar_prev)",
     "self.posterior_coef_x0, self.posterior_coef_xt = (1 - self.alpha_bar_prev)"
     " * (1 - self.betas).sqrt() / (1 - self.alpha_bar), self.posterior_coef_x0\n        _ = (1 - self.alpha_bar_prev)",
     "exchanged"),
    ("4.3", COEF_X0, COEF_X0.replace("_prev.sqrt()", ".sqrt()"), "wrong or exchanged"),
    ("4.3", COEF_X0, COEF_X0.replace("_prev.sqrt()", "_prev"), "posterior_coef_x0 is"),
    ("4.3", COEF_XT, COEF_XT.replace("(1 - self.betas).sqrt()", "(1 - self.betas)"), "posterior_coef_xt is"),
    ("4.3", VARIANCE, "self.posterior_variance = self.betas.clone()", "posterior_variance is"),
    ("4.3", BORROWED, "borrowed = self.posterior_variance", "no logarithm"),
    ("4.3", BORROWED, "borrowed = torch.cat([self.betas[:1], self.posterior_variance[1:]])", "borrows the second's"),
    ("4.3", ALONE, "self.log_posterior = borrowed.log()", "no second variance"),
    ("4.3", ALONE, "self.log_posterior = 0.5 * borrowed.log() if len(kept) > 1 else self.betas.log()",
     "logarithm of β̃"),
    ("4.3", ALONE, "self.log_posterior = torch.cat([self.betas[1:2], self.betas[1:]]).log()", "logarithm of β̃"),

    # 4.4 Diffusion.q_sample
    ("4.4", Q_SAMPLE, "return self.extract(self.alpha_bar, t, x0) * x0 + self.extract(self.noise, t, x0) * noise",
     "of the picture √ᾱ_t is left"),
    ("4.4", Q_SAMPLE, "return self.extract(self.signal, t, x0) * x0 + self.extract(1 - self.alpha_bar, t, x0) * noise",
     "√(1-ᾱ_t)"),
    ("4.4", Q_SAMPLE, "return self.extract(self.signal, t, x0) * x0 + (1 - self.extract(self.signal, t, x0)) * noise",
     "√(1-ᾱ_t)"),
    ("4.4", Q_SAMPLE, "return self.extract(self.noise, t, x0) * x0 + self.extract(self.signal, t, x0) * noise",
     "of the picture √ᾱ_t is left"),
    ("4.4", Q_SAMPLE, "return x0 + self.extract(self.noise, t, x0) * noise", "of the picture √ᾱ_t is left"),
    ("4.4", Q_SAMPLE, "return self.extract(self.signal, t[:1], x0) * x0 + self.extract(self.noise, t[:1], x0) * noise",
     "each example's own t"),
    ("4.4", Q_SAMPLE, "return self.signal[self.rows[t]] * x0 + self.noise[self.rows[t]] * noise",
     "each example's own t"),
    ("4.4", Q_SAMPLE, "a = self.alpha_bar[self.rows[t]].view(-1, 1, 1, 1)\n"
     "        return a.sqrt() * x0 + (1 - a).sqrt() * noise", "float32"),
    ("4.4", Q_SAMPLE, "x0 *= self.extract(self.signal, t, x0)\n"
     "        return x0 + self.extract(self.noise, t, x0) * noise", "belongs to the caller"),
    ("4.4", Q_SAMPLE, "return (self.extract(self.signal, t, x0) * x0 + self.extract(self.noise, t, x0) * noise)"
     ".clamp(-1, 1)", "x_t = √ᾱ_t"),

    # 4.5 Diffusion.posterior_mean
    ("4.5", MEAN, "return self.extract(self.posterior_coef_xt, t, x_t) * x0"
     " + self.extract(self.posterior_coef_x0, t, x_t) * x_t", "exchanged"),
    ("4.5", MEAN, "return self.extract(self.alpha_bar_prev.sqrt(), t, x_t) * x0"
     " + self.extract(self.posterior_coef_xt, t, x_t) * x_t", "share of x_0"),
    ("4.5", MEAN, "return self.extract(self.posterior_coef_x0, t, x_t) * x0", "share of x_t"),
    ("4.5", MEAN, "return self.posterior_coef_x0[self.rows[t]] * x0 + self.posterior_coef_xt[self.rows[t]] * x_t",
     "each example's own t"),
    ("4.5", MEAN, "a, b = (c[self.rows[t]].view(-1, 1, 1, 1) for c in (self.posterior_coef_x0,"
     " self.posterior_coef_xt))\n"
     "        return a * x0 + b * x_t", "float32"),
    ("4.5", MEAN, "return (self.extract(self.posterior_coef_x0, t, x_t) * x0"
     " + self.extract(self.posterior_coef_xt, t, x_t) * x_t).clamp(-1, 1)", "the mean is a mixture"),
    ("4.5", MEAN, "x_t.mul_(self.extract(self.posterior_coef_xt, t, x_t))\n"
     "        return x_t + self.extract(self.posterior_coef_x0, t, x_t) * x0", "belongs to the caller"),
    ("4.5", MEAN, MEAN.replace("* x0", "* x0.clamp(-1, 1)"), "the mean is a mixture"),

    # 4.6 Diffusion.p_mean_variance
    ("4.6", CHUNK, "between, eps = model_output.float().chunk(2, dim=1)", "first C channels"),
    ("4.6", "x0 = self.x0_from_eps(x_t, t, eps)\n        x0 = x0 if", "x0 = eps\n        x0 = x0 if",
     "first C channels"),
    ("4.6", CLIP, "", "clipped to [-1, 1]"),
    ("4.6", CLIP, "x0 = x0.clamp(-1, 1)\n", "with clip=False"),
    ("4.6", CLIP, "x_t = x_t.clamp(-1, 1) if clip else x_t\n", "clipped to [-1, 1]"),
    ("4.6", GAUSSIAN, "mean = self.posterior_mean(x0, x_t, t)\n        return GaussianStep(mean.clamp(-1, 1) if clip"
     " else mean, share * high + (1 - share) * low, x0)", "the mean"),
    ("4.6", GAUSSIAN, "return GaussianStep(self.posterior_mean(self.x0_from_eps(x_t, t, eps), x_t, t),"
     " share * high + (1 - share) * low, x0)", "the mean is computed from the x_0 that was clipped"),
    ("4.6", X0_FN + "        " + CLIP, CLIP + "        " + X0_FN, "x0_fn comes before the clip"),
    ("4.6", X0_FN, "pass\n", "x0_fn may change"),
    ("4.6", X0_FN, "x0 if x0_fn is None else x0_fn(x0)\n", "what it returned"),
    ("4.6", GAUSSIAN, "return GaussianStep(self.posterior_mean(x_t, x0, t), share * high + (1 - share) * low, x0)",
     "the mean"),
    ("4.6", GAUSSIAN, "return GaussianStep(x0, share * high + (1 - share) * low, x0)", "the mean"),
    ("4.6", GAUSSIAN, "return GaussianStep(self.posterior_mean(x0, x_t, t), share * low + (1 - share) * high, x0)",
     "v = 1 stands for log β"),
    ("4.6", BOUNDS, "high, low = self.extract(self.betas, t, x_t), self.extract(self.posterior_variance, t, x_t)",
     "v = 1 stands for log β"),
    ("4.6", GAUSSIAN, "return GaussianStep(self.posterior_mean(x0, x_t, t),"
     " (share * high.exp() + (1 - share) * low.exp()).log(), x0)", "logarithms of β and β̃ are interpolated"),
    ("4.6", GAUSSIAN, "return GaussianStep(self.posterior_mean(x0, x_t, t),"
     " 0.5 * (share * high + (1 - share) * low), x0)", "v = 1 stands for log β"),
    ("4.6", GAUSSIAN, "return (self.posterior_mean(x0, x_t, t), share * high + (1 - share) * low, x0)", "GaussianStep"),
    ("4.6", X0_FN, "x0 = x0 if x0_fn is None or not clip else x0_fn(x0)\n", "x0_fn"),
    ("4.6", SHARE, "share = between", "(v+1)/2"),
    ("4.6", SHARE, "share = between + 1 / 2", "v = 1 stands"),
    ("4.6", SHARE, "share = ((between + 1) / 2).clamp(0, 1)", "for any v"),

    # 4.7 Diffusion.loss
    ("4.7", SIMPLE, "simple = (eps - x0).square().flatten(1).mean(1)", "target is the noise"),
    ("4.7", SIMPLE, "simple = (eps + noise).square().flatten(1).mean(1)", "target is the noise"),
    ("4.7", SIMPLE, "simple = (self.x0_from_eps(x_t, t, eps) - x0).square().flatten(1).mean(1)", "L_simple"),
    ("4.7", SIMPLE, "simple = (output - torch.cat([noise, noise], dim=1)).square().flatten(1).mean(1)",
     "noise channels only"),
    ("4.7", SIMPLE, "simple = (eps - noise).square().flatten(1).sum(1)", "neither a sum"),
    ("4.7", SIMPLE, "simple = (eps - noise).square().mean()", "L_simple is the mean square"),
    ("4.7", SIMPLE, "simple = 0.5 * (eps - noise).square().flatten(1).mean(1)", "nor a half"),
    ("4.7", SIMPLE, "simple = (eps.detach() - noise).square().flatten(1).mean(1)", "gradient is L_simple's"),
    ("4.7", FROZEN, "frozen = output", "must not teach the mean"),
    ("4.7", FROZEN, "frozen = torch.cat([eps, between.detach()], dim=1)", "variance is never trained"),
    ("4.7", HYBRID, "return simple", "variance is never trained"),
    ("4.7", HYBRID, "return self.bound(frozen, x0, x_t, t)", "T/1000"),
    ("4.7", HYBRID, "return simple + self.bound(frozen, x0, x_t, t)", "T/1000"),
    ("4.7", HYBRID, "return simple + len(self.rows) / 1000 * self.bound(frozen, x0, x_t, t)", "T/1000"),
    ("4.7", HYBRID, "return simple + len(self.timesteps) / 1000 * self.bound(frozen, x_t, x0, t)", "T/1000"),
    ("4.7", HYBRID, "return (simple + len(self.timesteps) / 1000 * self.bound(frozen, x0, x_t, t)).mean()", "[B]"),
    ("4.7", WEIGHTED, "simple = simple if weights is None else simple * weights[t % len(weights)].float()",
     "by kept timesteps"),
    ("4.7", WEIGHTED, "simple = simple if weights is None else simple / self.extract(weights, t, simple)",
     "is multiplied"),
    ("4.7", HYBRID, "w = 1 if weights is None else self.extract(weights, t, simple)\n"
     "        return simple + w * len(self.timesteps) / 1000 * self.bound(frozen, x0, x_t, t)", "not the bound"),
    ("4.7", OUTPUT, "output = model(x0, send(t, x_t.device), **cond)", "the model sees x_t"),
    ("4.7", OUTPUT, "output = model(x_t, send(self.rows[t], x_t.device), **cond)", "original timesteps"),
    ("4.7", OUTPUT, "output = model(x_t, send(t, x_t.device))", "conditioning as it is"),
    ("4.7", "x_t = self.q_sample(x0, t, noise)\n        output",
     "x_t = self.q_sample(x0, t, torch.randn_like(noise))\n        output", "x_t"),
    ("4.7", SIMPLE, "simple = (eps - noise).square().flatten(1).mean(1).double()", "float32"),
    ("4.7", OUTPUT, "with torch.no_grad():\n            output = model(x_t, send(t, x_t.device), **cond)",
     "without gradient"),
    ("4.7", SIMPLE, "v = self.extract(self.signal, t, x0) * noise - self.extract(self.noise, t, x0) * x0\n"
     "        simple = (eps - v).square().flatten(1).mean(1)", "target is the noise"),

    # 4.8 Diffusion.ddpm_sample
    ("4.8", DDPM, DDPM.replace("self.reversed_timesteps(x_T)", "reversed(self.reversed_timesteps(x_T))"), "order"),
    ("4.8", DDPM, DDPM.replace("self.reversed_timesteps(x_T)", "self.reversed_timesteps(x_T)[:-1]"), "order"),
    ("4.8", ASKED, ASKED.replace("send(t, x.device)", "self.rows[t]"), "original names"),
    ("4.8", ASKED, ASKED.replace("model(x, ", "model(x_T, "), "goes on with"),
    ("4.8", ASKED, ASKED.replace(", x0_fn=x0_fn", ""), "x0_fn"),
    ("4.8", ASKED, ASKED.replace(", **cond", ", **prepare(model, **cond)"), "once"),
    ("4.8", DDPM, DDPM.replace("prepare(model, **cond)", "cond"), "prepare(model, **cond) is called once"),
    ("4.8", DDPM, "        x = x_T\n        prepare(model, **cond)\n" + DDPM.split("\n", 1)[1],
     "what prepare returned"),
    ("4.8", LAST, "noise = gaussian(x, generator)", "the last step"),
    ("4.8", LAST, "noise = gaussian(x, generator) if t[0] > 0 else 0", "the last step"),
    ("4.8", LAST, "noise = gaussian(x, generator) if t[0] < self.timesteps[-1] else 0", "fresh noise"),
    ("4.8", LAST, "noise = 0", "fresh noise"),
    ("4.8", LAST, "noise = gaussian(x, None) if t[0] > self.timesteps[0] else 0", "gaussian(x, generator)"),
    ("4.8", LAST, "noise = torch.rand_like(x) if t[0] > self.timesteps[0] else 0", "σ"),
    ("4.8", DRAWN, DRAWN.replace("(0.5 * p.log_variance).exp()", "p.log_variance.exp()"), "standard deviation"),
    ("4.8", DRAWN, DRAWN.replace("(0.5 * p.log_variance).exp()", "self.extract(self.betas.sqrt(), t, x)"),
     "standard deviation"),
    ("4.8", DRAWN, DRAWN.replace("mean +", "x +"), "mean of p_mean_variance"),
    ("4.8", DRAWN, DRAWN.replace("mean +", "p.x0 +"), "mean of p_mean_variance"),
    ("4.8", DRAWN, DRAWN.replace("p.x0,", "x,"), "callback is told the predicted x_0"),
    ("4.8", DRAWN, DRAWN.replace("step_fn, callback", "None, callback"), "step_fn"),
    ("4.8", DRAWN, DRAWN.replace("step_fn, callback", "step_fn, None"), "callback"),
    ("4.8", DRAWN, DRAWN.replace("x = self.after_step(", "x = ").replace(", t, p.x0, step_fn, callback)", "\n"
     "            if callback is not None:\n                callback(t, x, p.x0)\n"
     "            x = x if step_fn is None else step_fn(x, t)"), "after step_fn"),
    ("4.8", PULLED, PULLED.replace("p.log_variance.exp()", "(0.5 * p.log_variance).exp()"), "variance σ²"),
    ("4.8", PULLED, PULLED.replace("p.log_variance.exp() * ", ""), "multiplied by the variance"),
    ("4.8", PULLED, PULLED.replace("p.mean + p", "p.mean - p"), "and added"),
    ("4.8", PULLED, PULLED.replace("p.log_variance.exp()", "self.extract(self.betas, t, x)"), "grad_fn"),

    # 4.9 Diffusion.ddim_sample
    ("4.9", DDIM, DDIM.replace("self.reversed_timesteps(x_T)", "reversed(self.reversed_timesteps(x_T))"), "order"),
    ("4.9", DDIM, DDIM.replace("prepare(model, **cond)", "cond"), "prepare(model, **cond) is called once"),
    ("4.9", PREDICT, PREDICT.replace(" cond,", " {'word': 0.0},"), "passed on"),
    ("4.9", PREDICT, PREDICT.replace("x0_fn, grad_fn", "x0_fn"), "grad_fn"),
    ("4.9", PREDICT, PREDICT.replace("\n            sigma", "\n            output = model(x, t, **cond)\n"
     "            eps = output.chunk(2, dim=1)[0]\n            sigma"), "order"),
    ("4.9", PREDICT, "output = model(x, t, **cond)\n            eps = output.chunk(2, dim=1)[0]\n"
     "            x0 = self.p_mean_variance(output, x, t, x0_fn=x0_fn).x0\n            sigma",
     "noise that fits the clipped"),
    ("4.9", OLD_X0 + OLD_NOISE, ddim("self.alpha_bar.sqrt()", "(1 - self.alpha_bar).sqrt()"), "the last step ends"),
    ("4.9", OLD_X0 + OLD_NOISE, ddim(x0="self.alpha_bar_prev"), "√ᾱ_{t-1}·x̂_0"),
    ("4.9", OLD_X0 + OLD_NOISE, ddim(eps="(1 - self.alpha_bar_prev - sigma ** 2).clamp(min=0)"), "√(1-ᾱ_{t-1})"),
    ("4.9", OLD_X0 + OLD_NOISE, ddim(eps="(1 - self.alpha_bar_prev).sqrt()"), "fresh noise replaces old"),
    ("4.9", OLD_X0 + OLD_NOISE, ddim(eps="(1 - self.alpha_bar - sigma ** 2).clamp(min=0).sqrt()"),
     "the last step ends"),
    ("4.9", SIGMA, "sigma = eta * self.posterior_variance", "the root of posterior_variance"),
    ("4.9", SIGMA, "sigma = eta * self.betas.sqrt()", "σ"),
    ("4.9", SIGMA, "sigma = eta * (0.5 * self.log_posterior).exp()", "fresh noise is left"),
    ("4.9", SIGMA, "sigma = (eta * self.posterior_variance).sqrt()", "eta times the root"),
    ("4.9", SIGMA, "sigma = self.posterior_variance.sqrt()", "the same noise"),
    ("4.9", FRESH, "x = x + self.extract(sigma ** 2, t, x) * gaussian(x, generator)", "σ = eta·√β̃"),
    ("4.9", FRESH, "x = x + self.extract(sigma, t, x) * gaussian(x, None)", "gaussian(x, generator)"),
    ("4.9", FRESH, "x = x + self.extract(sigma, t, x) * gaussian(x[:1], generator)", "fresh noise has"),
    ("4.9", DDIM_AFTER, "\n            self.after_step(x, t, x0, step_fn, callback)", "step_fn"),
    ("4.9", DDIM_AFTER, "\n            x = self.after_step(x, t, x, step_fn, callback)",
     "callback is told the predicted x_0"),
    ("4.9", DDIM_AFTER, "\n            x = self.after_step(x, t, x0, step_fn, callback)\n        x = x0",
     "goes on with"),
    ("4.9", OLD_X0 + OLD_NOISE, "x = self.posterior_mean(x0, x, t)", "the same noise"),

    # 4.10 respace
    ("4.10", STRIDE, "stride = size / count", "both ends"),
    ("4.10", STRIDE, "stride = (size - 1) // (count - 1) if count > 1 else 1", "both ends"),
    ("4.10", SPREAD, "kept += [start + int(k * stride) for k in range(count)]", "nearest whole timestep"),
    ("4.10", SPREAD, "kept += [start + k * round(stride) for k in range(count)]", "nearest whole timestep"),
    ("4.10", SPREAD, "kept += [round(k * stride) for k in range(count)]", "each keeps its own number"),
    ("4.10", SPREAD, "kept = [start + round(k * stride) for k in range(count)] + kept", "first is nearest"),
    ("4.10", SIZE, "size = steps // len(counts)", "does not divide"),
    ("4.10", SIZE, "size = steps // len(counts) + (i >= len(counts) - steps % len(counts))", "does not divide"),
    ("4.10", SIZE, "size = steps // len(counts) + steps % len(counts) * (i == 0)", "does not divide"),
    ("4.10", NOISIEST, "return kept", "the noisiest"),
    ("4.10", NOISIEST, "return kept if counts[-1] > 1 else kept + [steps - 1]", "the noisiest"),
    ("4.10", FAST, 'return respace(steps, "10,10,3,2,2")', "999 to 997"),
    ("4.10", FAST, 'return respace(steps, "2,2,3,10,10")[:-1] + [steps * 997 // 1000]', "10,10,3,2,2"),
    ("4.10", "                return list(range(0, steps, stride))",
     "                return list(range(stride - 1, steps, stride))", "begin at 0"),
    ("4.10", STRIDES, "return respace(steps, str(count))\n        for stride in range(1, steps):", "whole stride"),
    ("4.10", STRIDES, "return list(range(0, steps, steps // count))\n        for stride in range(1, steps):",
     "cannot be met"),
    ("4.10", TOO_MANY, "if count > steps:", "more timesteps than a section"),
    ("4.10", TOO_MANY, "if False:", "more timesteps than a section"),
    ("4.10", NOISIEST, "return kept if counts[0] > 1 else kept[:-1] + [steps - 1]", "the noisiest"),
    ("4.10", "start += size", "start = start + size - 1", "each keeps its own number"),
    ("4.10", 'raise ValueError(f"cannot keep', 'count = size  # (f"cannot keep', "cannot be met"),

    # 4.11 to_bytes
    ("4.11", BYTES, "return ((x.float() + 1) * 127.5).round().to(torch.uint8)", "wrap around"),
    ("4.11", BYTES, "return ((x.float() + 1) * 127.5).round().to(torch.uint8).clamp(0, 255)", "wrap around"),
    ("4.11", BYTES, "return ((x.float() + 1) * 127.5).round().clamp(min=0).to(torch.uint8)", "wrap around"),
    ("4.11", BYTES, "return ((x.float() + 1) * 127.5).clamp(0, 255).to(torch.uint8)", "rounded"),
    ("4.11", BYTES, "return ((x.float() + 1) * 127.5).round().clamp(0, 255)", "uint8"),
    ("4.11", BYTES, "return (x.float() * 127.5 + 128.2).round().clamp(0, 255).to(torch.uint8)", "rounded"),
    ("4.11", BYTES, "return x.add_(1).mul_(127.5).round().clamp(0, 255).to(torch.uint8)", "belongs to the caller"),
    ("4.11", BYTES, "return ((x.float() + 1) * 127.5).round().clamp(1, 254).to(torch.uint8)", "-1 becomes 0"),
]

# Right but odd solutions, which must pass
VARIANTS = [
    ("4.1", LINSPACE, "rise = (0.02 - 1e-4) / (steps - 1)\n"
     "    return torch.tensor([(1e-4 + i * rise) * scale for i in range(steps)], dtype=torch.float64)"),
    ("4.1", LINSPACE, "return torch.from_numpy(np.linspace(1e-4, 0.02, steps)) * scale"),
    ("4.2", CAPPED, "betas = [1 - float(alpha_bar[i + 1]) / float(alpha_bar[i]) for i in range(steps)]\n"
     "    return torch.tensor([min(beta, 0.999) for beta in betas], dtype=torch.float64)"),
    ("4.2", COSINE, "alpha_bar = (1 + torch.cos((time + 0.008) / 1.008 * math.pi)) / 2\n"
     "    alpha_bar = alpha_bar / alpha_bar[0]"),
    ("4.3", CUMPROD, "alpha_bar = torch.exp(torch.cumsum(torch.log1p(-torch.as_tensor(betas, dtype=torch.float64)),"
     " 0))"),
    ("4.3", VARIANCE, "self.posterior_variance = self.betas - self.betas ** 2 * self.alpha_bar_prev / (1 -"
     " self.alpha_bar)"
     "\n        self.posterior_variance[0] = 0"),
    ("4.3", COEF_XT, "self.posterior_coef_xt = (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)"
     " * (self.alpha_bar / self.alpha_bar_prev).sqrt()"),
    ("4.4", Q_SAMPLE, "rows = [a * p + b * n for a, b, p, n in zip(self.extract(self.signal, t, x0),"
     " self.extract(self.noise, t, x0), x0, noise)]\n        return torch.stack(rows)"),
    ("4.4", Q_SAMPLE, "a = self.alpha_bar[self.rows[t]][:, None, None, None]\n"
     "        return torch.add(a.sqrt() * x0.double(), (1 - a).sqrt() * noise.double()).float()"),
    ("4.5", MEAN, "return torch.einsum('bxyz,bchw->bchw', self.extract(self.posterior_coef_xt, t, x_t), x_t)"
     " + torch.einsum('bxyz,bchw->bchw', self.extract(self.posterior_coef_x0, t, x_t), x0)"),
    ("4.5", MEAN, "a, b, c = (self.extract(s, t, x_t).double() for s in (self.alpha_bar_prev, self.betas,"
     " self.alpha_bar))\n"
     "        return ((a.sqrt() * b * x0 + (1 - a) * (1 - b).sqrt() * x_t) / (1 - c)).float()"),
    ("4.6", GAUSSIAN, "mean, middle, half = self.posterior_mean(x0, x_t, t), (high + low) / 2, (high - low) / 2\n"
     "        return GaussianStep(mean, middle + between * half, x0)"),
    ("4.6", CLIP, "x0 = torch.minimum(torch.maximum(x0, -torch.ones_like(x0)), torch.ones_like(x0)) if clip else x0\n"),
    ("4.6", CHUNK, "C = x_t.shape[1]\n        eps, between = model_output[:, :C], model_output[:, C:]"),
    ("4.7", SIMPLE, "simple = F.mse_loss(eps, noise, reduction='none').mean((1, 2, 3))"),
    ("4.7", SIMPLE, "simple = torch.stack([((a - b) ** 2).sum() / a.numel() for a, b in zip(eps, noise)])"),
    ("4.7", FROZEN, "frozen = output.clone()\n        frozen[:, :eps.shape[1]] = eps.detach()"),
    ("4.7", HYBRID, "bound = self.bound(frozen, x0, x_t, t)\n"
     "        return (1000 * simple.double() + len(self.timesteps) * bound.double()).div(1000).float()"),
    ("4.8", LAST, "z = torch.stack([gaussian(row, g) for row, g in zip(x, generator)]) if isinstance(generator, list)"
     " else gaussian(x, generator)\n            noise = z * float(t[0] != self.timesteps[0])"),
    ("4.8", DRAWN, "x = p.log_variance.double().exp().sqrt().float() * noise + mean\n"
     "            x = x if step_fn is None else step_fn(x, t)\n"
     "            if callback is not None:\n                callback(t, x, p.x0)"),
    ("4.9", OLD_X0 + OLD_NOISE, "a, s2 = self.extract(self.alpha_bar_prev, t, x), self.extract(sigma ** 2, t, x)\n"
     "            x = a.sqrt() * x0 + (1 - a - s2).clamp(min=0).sqrt() * eps"),
    ("4.9", PREDICT, "x0 = self.p_mean_variance(model(x, t, **cond), x, t, x0_fn=x0_fn).x0\n"
     "            eps = (x - self.extract(self.signal, t, x) * x0) / self.extract(self.noise, t, x)\n"
     "            if grad_fn is not None:\n"
     "                eps = eps - self.extract(self.noise, t, x) * grad_fn(x, t)\n"
     "                x0 = self.x0_from_eps(x, t, eps)\n            sigma"),
    ("4.9", "if eta:\n                x = x + self.extract(sigma, t, x) * gaussian(x, generator)",
     "x = x + self.extract(sigma, t, x) * gaussian(x, generator)"),
    ("4.10", SPREAD, "kept += [start + (2 * k * (size - 1) + count - 1) // (2 * (count - 1)) if count > 1 else start"
     " for k in range(count)]"),
    ("4.10", SPREAD, "place = float(start)\n        for _ in range(count):\n            kept.append(round(place))\n"
     "            place += stride"),
    ("4.10", STRIDES, "for stride in range(steps - 1, 0, -1):"),
    ("4.10", STRIDES, "for stride in [k for k in range(1, steps) if -(-steps // k) == count][:1]:"),
    ("4.11", BYTES, "return (x.double().clamp(-1, 1) * 127.5 + 127.5 + 0.5).floor().to(torch.uint8)"),
    ("4.11", BYTES, "values = [min(255, max(0, round((float(v) + 1) * 127.5))) for v in x.flatten()]\n"
     "    return torch.tensor(values, dtype=torch.uint8).view(x.shape)"),
]
